import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what is disturbed is the store; the engine's own tests run on trio as well
