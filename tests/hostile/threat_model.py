"""The part of docs/threat-model.md that lists attacks: read from the tests that carry the marker `attack`.

``python -m hostile.threat_model`` in the tests folder puts it into the page again.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "threat-model.md"
BEGIN = "<!-- written by tests/hostile/threat_model.py: begin -->\n"
END = "<!-- end -->\n"

SUBJECTS = {
    "records": "Sealed records",
    "key exchange": "The key exchange",
    "tokens": "Tokens and receipts",
    "whole migrations": "Whole migrations, played again",
    "two targets": "Two targets",
    "receivers": "Receivers, and whose guest it is",
    "post-copy": "What comes while the guest runs already (post-copy)",
    "everything at once": "All of this at once",
    "network": "The network between two hosts",
    "method psp": "Packets between secure processors (method psp)",
    "memory under way": "Memory that changes while it is used",
    "dirty sets": "What is dirty, and what was sent",
    "page states": "Which pages are shared",
    "guest memory": "A guest's memory",
    "registers": "A guest's registers",
    "lengths and addresses": "Lengths, numbers and addresses",
    "requests": "Requests",
    "files": "Snapshot files",
}
"""What an attack is on, in the page's order, and the headings."""

GAINS = ("nothing", "denial of service", "shared pages", "as on silicon", "as AMD's protocol gives", "a second copy")
"""How what an attacker gains begins; the page says what each of these means."""


@dataclass(frozen=True)
class Attack:
    """A marked test.

    Attributes:
        what: completes "whoever controls the VMMs and the network …".
        gains: all that comes of it, which the test asserts.
        test: its id.
    """

    subject: str
    what: str
    gains: str
    test: str


def attacks() -> Iterator[Attack]:
    """All marked tests, file by file.

    Raises:
        ValueError: a marker is not as it should be; the message names the test.
    """
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                test = f"{path.relative_to(TESTS.parent)}::{node.name}"
                yield from (_attack(mark, test) for mark in node.decorator_list if _is_mark(mark))


def _is_mark(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.attack"


def _attack(mark: ast.expr, test: str) -> Attack:
    match mark:
        case ast.Call(
            args=[ast.Constant(str(subject)), ast.Constant(str(what))],
            keywords=[ast.keyword("gains", ast.Constant(str(gains)))],
        ) if subject in SUBJECTS and gains.startswith(GAINS):
            return Attack(subject, what, gains, test)
    raise ValueError(
        f"{test}: write attack(subject, what, gains=…), with a known subject and gains: {ast.unparse(mark)}"
    )


def written_part(found: list[Attack]) -> str:
    """The tables."""
    parts = [f"{len(found)} attacks:"]
    for subject, heading in SUBJECTS.items():
        rows = [attack for attack in found if attack.subject == subject]
        parts += ["", f"### {heading}", "", "| whoever controls VMMs and network … | gains | test |", "|---|---|---|"]
        parts += [f"| {attack.what} | {attack.gains} | `{attack.test}` |" for attack in rows]
    return "\n".join(parts) + "\n\n"


def page_with(part: str) -> str:
    """The page with its written part replaced by `part`."""
    head, rest = PAGE.read_text("utf-8").split(BEGIN)
    return head + BEGIN + part + rest[rest.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(page_with(written_part(list(attacks()))), "utf-8")
