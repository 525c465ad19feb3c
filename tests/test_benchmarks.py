"""What `make bench` does with a figure that misses its bound."""

from collections.abc import Callable

from benchmarks.measure import Figure, measured

BOUND = 150


def figure(name: str, value: int) -> Figure:
    return Figure(name, f"{value} us", f"{value - 10}-{value + 10}", "", f"{BOUND} us", value <= BOUND, "")


def in_turn(*results: list[Figure]) -> Callable[[], list[Figure]]:
    left = iter(results)
    return lambda: next(left)


def test_a_figure_that_misses_is_measured_once_more_and_says_both() -> None:
    found = measured(in_turn([figure("slow", 200)], [figure("slow", 100)]), in_turn([figure("quick", 90)]))
    assert [(each.name, each.value, each.holds, each.verdict) for each in found] == [
        ("slow", "100 us", True, "holds, 200 us (190-210) at first"),
        ("quick", "90 us", True, "holds"),
    ]


def test_one_that_misses_twice_has_missed() -> None:
    [found] = measured(in_turn([figure("slow", 200)], [figure("slow", 300)]))
    assert (found.holds, found.verdict) == (False, "MISSED, 200 us (190-210) at first")


def test_one_that_held_is_not_replaced_by_what_its_neighbour_needed() -> None:
    found = measured(
        in_turn([figure("held", 100), figure("missed", 200)], [figure("held", 500), figure("missed", 120)])
    )
    assert [(each.value, each.verdict) for each in found] == [
        ("100 us", "holds"),
        ("120 us", "holds, 200 us (190-210) at first"),
    ]
