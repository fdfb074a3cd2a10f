"""No order of guest writes, flips, harvests and sends loses a page or shows a secret (docs/dirty-tracking.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.designs import OURS, SAFE, UNSAFE
from model.explorer import Exploration, Move, explore
from model.migration import Design, State
from model.report import BEGIN, END, PAGE, check, our_title, table_row, trace

# An exploration below these has lost an actor. They are a little under what was reached.
STATES_AT_LEAST = {"private plane": 170_000, "shared plane, with a device": 190_000, "secrecy": 15_000}


def _written() -> str:
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def _proof(title: str, found: Exploration[State]) -> None:
    if found.counterexample is not None:
        pytest.fail(f"counter-example:\n{trace(found.counterexample)}")
    assert found.exhaustive, f"gave up after {found.states} states"
    assert found.finished, "no migration was ever completed, so nothing was checked"
    row = table_row(title, found)
    assert row in _written(), f"run model.report; now it is:\n{row}"


@pytest.mark.attack(
    "dirty sets",
    "chooses the moment of every look at a log, every send and every flip: all reachable states",
    gains="nothing",
)
@pytest.mark.parametrize("name", OURS)
def test_our_design_has_no_counterexample_in_any_reachable_state(name: str) -> None:
    found = check(Design(), OURS[name])
    _proof(our_title(name), found)
    assert found.states >= STATES_AT_LEAST[name]


@pytest.mark.parametrize("name", SAFE)
def test_designs_called_safe_have_no_counterexample_either(name: str) -> None:
    _proof(SAFE[name].title, check(SAFE[name].design, SAFE[name].scope))


@pytest.mark.parametrize("name", UNSAFE)
def test_designs_called_unsafe_have_a_counterexample_and_the_page_shows_it(name: str) -> None:
    found = check(UNSAFE[name].design, UNSAFE[name].scope)
    assert found.counterexample is not None, f"none in {found.states} states"
    shown = trace(found.counterexample)
    assert f"{UNSAFE[name].because}\n\n```text\n{shown}\n```\n" in _written(), f"run model.report; now it is:\n{shown}"


class _Ladder:
    """Steps 0 to 9, one or two at a time; the top is a fault."""

    def initial(self) -> Iterator[Move[int]]:
        yield "the ground", 0

    def moves(self, state: int) -> Iterator[Move[int]]:
        yield from ((f"up {up}", state + up) for up in (1, 2) if state + up <= 9)

    def fault(self, state: int) -> str | None:
        return "the top" if state == 9 else None

    def finished(self, state: int) -> bool:
        return state == 8


def test_the_explorer_returns_a_shortest_run_into_the_fault() -> None:
    found = explore(_Ladder(), 100).counterexample
    assert found is not None
    assert found.fault == "the top"
    assert found.run[0] == ("the ground", 0)
    assert [state for _, state in found.run][-1] == 9
    assert len(found.run) == 6


def test_the_explorer_does_not_call_a_search_exhaustive_that_met_its_limit() -> None:
    found = explore(_Ladder(), 3)
    assert not found.exhaustive
    assert found.counterexample is None
