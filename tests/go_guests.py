"""The committed guests in Go, ABI v1, of both compilers: those of the tests, and the order of samples/order_saga."""

import gzip
from pathlib import Path

import pytest

__all__ = ["COMPILERS", "guest"]

_GUESTS = Path(__file__).parent / "guests"
_ORDER = Path(__file__).parent.parent / "samples" / "order_saga" / "order.wasm"
COMPILERS = pytest.mark.parametrize("compiler", ["tinygo", "go"])


def guest(name: str, compiler: str) -> bytes:
    """The module's bytes."""
    path = _ORDER if (name, compiler) == ("order", "tinygo") else _GUESTS / f"{name}_{compiler}.wasm"
    return path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
