"""The committed guests in Go, ABI v1, of both compilers."""

import gzip
from pathlib import Path

import pytest

__all__ = ["COMPILERS", "guest"]

_GUESTS = Path(__file__).parent / "guests"
COMPILERS = pytest.mark.parametrize("compiler", ["tinygo", "go"])


def guest(name: str, compiler: str) -> bytes:
    """The module's bytes."""
    path = _GUESTS / f"{name}_{compiler}.wasm"
    return path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
