"""The part of docs/dirty-tracking.md that the checker writes.

``python -m model.report`` in the tests folder puts it into the page again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from model.designs import OURS, SAFE, UNSAFE, Proposal
from model.explorer import Counterexample, Exploration, explore
from model.migration import Design, Migration, Scope, State, Step

PAGE = Path(__file__).parents[2] / "docs" / "dirty-tracking.md"
BEGIN = "<!-- written by tests/model/report.py: begin -->\n"
END = "<!-- end -->\n"

STATE_LIMIT = 400_000
"""Twice the largest exploration; one that passes it has a mistake in its model."""

_MIGRATION_STEPS = frozenset(step.value for step in Step)


def check(design: Design, scope: Scope) -> Exploration[State]:
    """Explore one design."""
    return explore(Migration(design, scope), STATE_LIMIT)


def trace(counterexample: Counterexample[State]) -> str:
    """A counter-example for a reader; what the migration does without being interrupted is one paragraph."""
    lines: list[str] = []
    for migrating, group in groupby((name for name, _ in counterexample.run), _MIGRATION_STEPS.__contains__):
        names = list(group)
        lines += wrap("; ".join(names), 100, initial_indent="  > ", subsequent_indent="    ") if migrating else names
    return "\n".join([*lines, f"=> {counterexample.fault}"])


def written_part() -> str:
    """The tables and traces, from fresh explorations."""
    ours = {name: check(Design(), scope) for name, scope in OURS.items()}
    safe = {name: check(proposal.design, proposal.scope) for name, proposal in SAFE.items()}
    unsafe = {name: check(proposal.design, proposal.scope) for name, proposal in UNSAFE.items()}
    return "\n".join(
        [
            "| design | reachable states, all visited | steps | outcome |",
            "|---|---|---|---|",
            *(table_row(our_title(name), found) for name, found in ours.items()),
            *(table_row(SAFE[name].title, found) for name, found in safe.items()),
            "",
            *(f"- *{_sentence(proposal)}*: {proposal.because}" for proposal in SAFE.values()),
            "",
            *_counterexamples(UNSAFE, unsafe),
        ]
    )


def table_row(title: str, found: Exploration[State]) -> str:
    """The line of the results table for a design that was explored."""
    outcome = "no counter-example" if found.exhaustive else "not shown"
    return f"| {title} | {found.states:,} | {found.steps:,} | {outcome} |"


def our_title(name: str) -> str:
    """How the results table names an exploration of Sealift's design."""
    return f"**ours**, {name}"


def _sentence(proposal: Proposal) -> str:
    return proposal.title[0].upper() + proposal.title[1:]


def _counterexamples(proposals: Mapping[str, Proposal], found: Mapping[str, Exploration[State]]) -> Iterator[str]:
    for name, proposal in proposals.items():
        counterexample = found[name].counterexample
        yield f"### {_sentence(proposal)}"
        yield ""
        yield proposal.because
        yield ""
        yield "```text"
        yield "no counter-example" if counterexample is None else trace(counterexample)
        yield "```"
        yield ""


def page_with(part: str) -> str:
    """The page with its written part replaced by `part`."""
    text = PAGE.read_text("utf-8")
    head, rest = text.split(BEGIN)
    return head + BEGIN + part + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(page_with(written_part()), "utf-8")
