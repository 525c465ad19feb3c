import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from samples.fastapi_orders.app import make_app
from samples.fastapi_orders.shop import Bank, Ledger
from tests.doc_pages import ROOT, run_page
from wasman_sdk import Client

TEA = {"sku": "tea", "quantity": 2, "cents": 450}
CUP = {"sku": "cup", "quantity": 1, "cents": 800}
ORDER: dict[str, Any] = {"card": "4711", "lines": [TEA, CUP]}
SLOW = Bank(seconds=600)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def api(folder: Path, bank: Bank) -> AsyncIterator[httpx.AsyncClient]:
    """The application in this process; httpx's transport speaks to it, and leaves its lifespan to us."""
    app = make_app(f"sqlite:///{folder}/orders.db", f"{folder}/ledger.db", bank)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://orders") as http,
    ):
        yield http


async def placed(http: httpx.AsyncClient, key: str, order: dict[str, Any] = ORDER) -> httpx.Response:
    return await http.post("/orders", json=order, headers={"Idempotency-Key": key})


def done(folder: Path) -> list[tuple[str, str, int]]:
    with closing(Ledger(folder / "ledger.db")) as ledger:
        return ledger.done()


async def charging(folder: Path, id: str) -> None:
    """Wait until both reservations are in the log: what the guest does next is to ask for the charge."""
    with anyio.fail_after(60):
        async with Client.connect(f"sqlite:///{folder}/orders.db") as client:
            while [event.kind for event in await client.get_handle(id).history()] != ["start", "result", "result"]:
                await anyio.sleep(0.02)


async def test_an_order_is_placed_looked_at_and_fulfilled(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    async with api(tmp_path, Bank()) as http:
        answer = await placed(http, "first")
        assert (answer.status_code, answer.headers["Location"]) == (202, "http://orders/orders/first")
        assert answer.json()["status"] == "running"
        result = await http.get("/orders/first/result")
        assert (result.status_code, result.json()["cents"]) == (200, 1700)
        seen = (await http.get(answer.headers["Location"])).json()
        assert (seen["id"], seen["status"], seen["reason"]) == ("first", "completed", "")
        assert seen["closed"] > seen["placed"]
    assert [(what, of) for what, of, _ in done(tmp_path)] == [
        ("reserve", "2 tea"), ("reserve", "1 cup"), ("charge", "1700 cents of 4711"), ("ship", "reserve-1, reserve-2"),
    ]  # fmt: skip


async def test_the_same_order_again_does_nothing_and_another_one_is_refused(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    async with api(tmp_path, Bank(seconds=1)) as http:
        answers = [await placed(http, "again"), await placed(http, "again")]
        assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(202, "running")] * 2
        assert (await http.get("/orders/again/result")).status_code == 200
        assert (await placed(http, "again")).json()["status"] == "completed"
        other = await placed(http, "again", {**ORDER, "card": "1234"})
        assert (other.status_code, other.json()) == (409, {"detail": "another order was placed under the key 'again'"})
    assert len(done(tmp_path)) == 4


async def test_what_failed_is_undone_and_told(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    async with api(tmp_path, Bank()) as http:
        await placed(http, "refused", {**ORDER, "card": "0000"})
        answer = await http.get("/orders/refused/result")
        assert answer.status_code == 409
        assert answer.json()["detail"].endswith("CardDeclined: the bank refuses the card")
        await placed(http, "none", {**ORDER, "lines": [TEA, {**CUP, "sku": "gone"}]})
        assert "OutOfStock: there is no gone left" in (await http.get("/orders/none/result")).json()["detail"]
    assert [(what, of) for what, of, _ in done(tmp_path)] == [
        ("reserve", "2 tea"), ("reserve", "1 cup"), ("release", "reserve-2"), ("release", "reserve-1"),
        ("reserve", "2 tea"), ("release", "reserve-5"),
    ]  # fmt: skip


async def test_waiting_is_bounded_and_a_cancelled_order_is_undone(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    async with api(tmp_path, SLOW) as http:
        await placed(http, "slow")
        await charging(tmp_path, "slow")
        early = await http.get("/orders/slow/result", params={"wait": 0.05})
        assert (early.status_code, early.json()["status"]) == (202, "running")
        answer = await http.post("/orders/slow/cancel", params={"reason": "too slow"})
        assert answer.status_code == 202
        ended = await http.get("/orders/slow/result")
        assert (ended.status_code, ended.json()["detail"][-23:]) == (409, "was cancelled: too slow")
        assert (await http.post("/orders/slow/cancel")).status_code == 409
    assert [what for what, _, _ in done(tmp_path)] == ["reserve", "reserve", "release", "release"]


async def test_orders_are_listed_by_pages(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    async with api(tmp_path, Bank()) as http:
        for n in range(3):
            await placed(http, f"listed-{n}")
            assert (await http.get(f"/orders/listed-{n}/result")).status_code == 200
        page = (await http.get("/orders", params={"limit": 2, "state": ["completed", "failed"]})).json()
        assert [one["id"] for one in page["orders"]] == ["listed-2", "listed-1"]
        rest = (await http.get("/orders", params={"limit": 2, "cursor": page["next"], "state": "completed"})).json()
        assert [one["id"] for one in rest["orders"]] == ["listed-0"]
        assert rest["next"] is None


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "said"),
    [
        ("GET", "/orders/nobody", None, 404, "nobody"),
        ("GET", "/orders/nobody/result", None, 404, "nobody"),
        ("POST", "/orders/nobody/cancel", None, 404, "nobody"),
        ("GET", "/orders?state=odd", None, 400, "'odd' is not a valid Status"),
        ("GET", "/orders?cursor=odd", None, 400, "cursor"),
        ("POST", "/orders", {"card": "4711", "lines": []}, 422, "lines"),
        ("POST", "/orders", {**ORDER, "colour": "red"}, 422, "colour"),
    ],
)
async def test_what_cannot_be_done_is_told(
    method: str, path: str, given: Any, status: int, said: str, tmp_path: Path, anyio_backend: str
) -> None:
    del anyio_backend
    async with api(tmp_path, Bank()) as http:
        answer = await http.request(method, path, json=given)
        assert answer.status_code == status
        assert said in answer.text
        assert (await placed(http, "a/b")).status_code == 400
    assert done(tmp_path) == []


@contextmanager
def server(folder: Path, bank_seconds: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A uvicorn process at a free port; its address, and the process."""
    environment = {
        **os.environ,
        "ORDERS_STORE": f"sqlite:///{folder}/orders.db",
        "ORDERS_LEDGER": f"{folder}/ledger.db",
        "ORDERS_BANK_SECONDS": str(bank_seconds),
    }
    command = [sys.executable, "-m", "uvicorn", "samples.fastapi_orders.app:app", "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            told = []
            for line in process.stderr:
                told.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    yield found[1], process
                    break
            else:
                pytest.fail(f"the server did not come up:\n{''.join(told)}")
        finally:
            process.kill()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_that_is_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path, anyio_backend: str) -> None:
    del anyio_backend
    with server(tmp_path, bank_seconds=600) as (address, process):
        async with httpx.AsyncClient(base_url=address) as http:
            assert (await placed(http, "survivor")).status_code == 202
        await charging(tmp_path, "survivor")
        process.send_signal(signal.SIGKILL)
        assert await anyio.to_thread.run_sync(process.wait) == -signal.SIGKILL
    assert [what for what, _, _ in done(tmp_path)] == ["reserve", "reserve"]
    with server(tmp_path, bank_seconds=0) as (address, process):
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            answer = await http.get("/orders/survivor/result", params={"wait": 60})
            assert (answer.status_code, answer.json()["cents"]) == (200, 1700)
            assert (await placed(http, "survivor")).json()["status"] == "completed"
        process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(process.wait) in {0, -signal.SIGTERM}
    assert [(what, calls) for what, _, calls in done(tmp_path)] == [
        ("reserve", 1), ("reserve", 1), ("charge", 1), ("ship", 1),
    ]  # fmt: skip


@pytest.mark.once
def test_readme(tmp_path: Path) -> None:
    page = ROOT / "samples" / "fastapi_orders" / "README.md"
    run_page(str(page), page.read_text("utf-8"), tmp_path)
