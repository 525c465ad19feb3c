"""Restate: its server, its service, and a client that costs as little as it can; runs in the peers' environment.

The client speaks HTTP/1.1 over one kept connection a lane: the two cores are the server's and the service's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.lanes import STEPS, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 90.0  # seconds until it is up


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _until_answered(url: str, data: bytes | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  a server of our own
                answer.read()
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                message = f"Restate did not come up in {_PATIENCE:g} s: {url}: {error}"
                raise RuntimeError(message) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Ingress:
    """Starts workflows at the server and waits for what they give."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, name: str) -> object:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        body = json.dumps(STEPS).encode()
        head = f"POST /ten/{name}/run HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        lengths = [line.split(":")[1] for line in answer.split("\r\n") if line.startswith("content-length:")]
        if not answer.startswith("http/1.1 200") or not lengths:
            raise RuntimeError(answer)
        result = json.loads(await reader.readexactly(int(lengths[0])))
        self._idle.append((reader, writer))
        return result


def _settings(server: str, environment: dict[str, str]) -> str:
    """What the server says of its sync settings."""
    dump = subprocess.run([server, "--dump-config"], check=True, capture_output=True, text=True, env=environment).stdout
    shown, section = [], ""
    for line in dump.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.startswith(("rocksdb-disable-wal-fsync", "default-provider")):
            shown.append(f"{section}: {line}")
    return "; ".join(shown)


def main(server: str, folder: Path) -> None:
    """Start all of it, answer, end all of it."""
    node, admin, ingress, service = _free_ports(4)
    environment = {
        "RESTATE_BASE_DIR": str(folder / "restate"),
        "RESTATE_NODE_NAME": "bench",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}/",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LOG_FILTER": "error",
    }
    settings = _settings(server, {**os.environ, **environment})
    serving = [sys.executable, "-m", "benchmarks.peers.restate_service", str(service)]
    with (
        _process([server, "--no-logo"], folder / "restate-server.log", environment) as server_id,
        _process(serving, folder / "restate-service.log") as service_id,
    ):
        _until_answered(f"http://127.0.0.1:{admin}/health")
        deployment = json.dumps({"uri": f"http://127.0.0.1:{service}/"}).encode()
        _until_answered(f"http://127.0.0.1:{admin}/deployments", deployment)
        shown = subprocess.run([server, "--version"], check=True, capture_output=True, text=True).stdout.split()
        about = {
            "version": f"{shown[1]}, restate_sdk {version('restate_sdk')}, hypercorn {version('hypercorn')}",
            "settings": settings,
            "processes": {"server": server_id, "service": service_id},
        }
        asyncio.run(serve(about, _Ingress(ingress).run))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(sys.argv[1], Path(sys.argv[2]).absolute())
