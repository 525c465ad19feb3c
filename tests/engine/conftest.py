from typing import Any

import pytest

from wasman_host.instance import Instance


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def evicts_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every turn is followed by a snapshot, and the guest's memory is given up; what was closed so."""
    closed: list[str] = []
    keep = Instance.keep

    async def evicting(self: Instance, *given: Any) -> None:
        await keep(self, *given)
        closed.append(self.key.id)
        self.close_guest()

    monkeypatch.setattr(Instance, "keeps", lambda *_: True)
    monkeypatch.setattr(Instance, "keep", evicting)
    return closed
