"""A breadth-first explorer of finite transition systems.

It visits every reachable state once and knows nothing of what it explores. Breadth first makes the first
counter-example a shortest one. Only each state's parent is kept; a trace is found again by replaying the steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

S = TypeVar("S", bound=Hashable)

Move: TypeAlias = tuple[str, S]
"""A step's name and the state it leads to."""


class System(Protocol[S]):
    """What can be explored."""

    def initial(self) -> Iterable[Move[S]]:
        """The states to start from, each with a name for traces."""

    def moves(self, state: S) -> Iterable[Move[S]]:
        """Every step any actor can take now; none means that the run is over."""

    def fault(self, state: S) -> str | None:
        """What is wrong in `state`, or None."""

    def finished(self, state: S) -> bool:
        """Whether a run has come to its end in `state`."""


@dataclass(frozen=True, slots=True)
class Counterexample(Generic[S]):
    """A shortest run into a faulty state: names and states, the initial state first."""

    fault: str
    run: tuple[Move[S], ...]


@dataclass(frozen=True, slots=True)
class Exploration(Generic[S]):
    """What an exploration saw.

    Attributes:
        states: distinct states reached.
        steps: transitions taken.
        finished: distinct states in which a run came to its end.
        exhaustive: every reachable state was visited; False after a counter-example or at the limit.
        counterexample: the first fault met, if any.
    """

    states: int
    steps: int
    finished: int
    exhaustive: bool
    counterexample: Counterexample[S] | None


def explore(system: System[S], limit: int) -> Exploration[S]:
    """Visit the reachable states of `system`, level by level, up to the first fault or past `limit` states."""
    parents: dict[S, S | None] = dict.fromkeys((state for _, state in system.initial()), None)
    frontier = list(parents)
    steps = finished = 0

    while frontier and len(parents) <= limit:
        reached: list[S] = []
        for state in frontier:
            finished += system.finished(state)
            fault = system.fault(state)
            if fault is not None:
                found = Counterexample(fault, _run(system, parents, state))
                return Exploration(len(parents), steps, finished, exhaustive=False, counterexample=found)
            for _, successor in system.moves(state):
                steps += 1
                if successor not in parents:
                    parents[successor] = state
                    reached.append(successor)
        frontier = reached
    return Exploration(len(parents), steps, finished, exhaustive=not frontier, counterexample=None)


def _run(system: System[S], parents: dict[S, S | None], last: S) -> tuple[Move[S], ...]:
    """The run that led to `last`, found by walking back and naming each step again."""
    run: list[Move[S]] = []
    state = last
    while (parent := parents[state]) is not None:
        run.append((_name(system.moves(parent), state), state))
        state = parent
    run.append((_name(system.initial(), state), state))
    return tuple(reversed(run))


def _name(moves: Iterable[Move[S]], target: S) -> str:
    return next(name for name, state in moves if state == target)
