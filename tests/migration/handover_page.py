"""The part of docs/handover.md that is the commit table: what becomes of a guest if somebody is lost, and its states.

``python -m migration.handover_page`` in the tests folder puts it into the page again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sealift.guest.handler.commit import FACTS, HANDOVER, LEGS, POSTCOPY, Fate, Lost, Passage, Role, State, fate

PAGE = Path(__file__).parents[2] / "docs" / "handover.md"
BEGIN = "<!-- written by tests/migration/handover_page.py: begin -->\n"
END = "<!-- end -->\n"

_SENDERS = {Role.SOURCE: "source", Role.TARGET: "target"}


def written_part() -> str:
    """The tables, of the code's own."""
    tables = [
        *_fates(HANDOVER),
        "",
        "After the connections were lost in the rounds, if the user wanted a resume window:",
        "",
        *_fates(LEGS),
        "",
        "Post-copy, behind the STARTED of a target that misses pages:",
        "",
        *_fates(POSTCOPY),
    ]
    return "\n".join(["", *tables, "", *_words(), "", *_states(), "", ""])


def _fates(passages: tuple[Passage, ...]) -> Iterator[str]:
    yield from _head("message", "from", "source is", "target is", *(f"without {lost.value}" for lost in Lost))
    for passage in passages:
        fates = (fate(passage, lost).name.lower().replace("_", " ") for lost in Lost)
        states = (passage.source.name, passage.target.name)
        yield _row(passage.message, _SENDERS[passage.sender], *states, *(f"**{each}**" for each in fates))


def _words() -> Iterator[str]:
    yield "where the guest"
    yield ""
    for each in Fate:
        yield f"- **{each.name.lower().replace('_', ' ')}** {each.value}"


def _states() -> Iterator[str]:
    yield from _head("state", "the guest's vCPUs", "way out")
    for state in State:
        yield _row(f"`{state.name}`", "may run" if FACTS[state].runs else "stand still", FACTS[state].way_out)


def _head(*cells: str) -> Iterable[str]:
    return _row(*cells), "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def page_with(part: str) -> str:
    """The page with its written part replaced by `part`."""
    head, rest = PAGE.read_text("utf-8").split(BEGIN)
    return head + BEGIN + part + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(page_with(written_part()), "utf-8")
