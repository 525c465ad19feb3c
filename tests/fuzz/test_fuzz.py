"""5,000 hostile guests, in processes of their own: none ends its worker, hangs, or has a byte written elsewhere."""

import pytest

from tests.fuzz.campaign import campaign

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("kind", "count"), [("generated", 1000), ("flipped", 2000), ("arguments", 2000)])
def test_no_guest_hurts_its_host(kind: str, count: int) -> None:
    report = campaign(kind, 0, count)
    assert not report.failures, "\n\n".join(report.failures[:5])
    assert report.ends.total() == count
    assert report.ends["completed"] > count / 20, "the cases are of little use: nearly none runs"
