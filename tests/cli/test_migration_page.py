"""docs/migration.md is true: every command in it is run, and must answer what the page shows but for figures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift
from pages import Shell, Step, steps
from sealift.wire.obstacle import WARNINGS, Code

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"

_FIGURE = re.compile(r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b")
_PROGRESS = re.compile(r"sealift: demo: \w+")
_REFUSALS = ("cannot be moved", "does not converge")
_INTERRUPTED = 124
"""What timeout(1) says of a command that it ended."""


def leveled(line: str) -> str:
    """The line without what differs from run to run: figures, the width of columns, one round or several."""
    return re.sub(r"\s+", " ", _FIGURE.sub("N", line)).replace("rounds", "round").strip()


def spoken(text: str) -> list[str]:
    """What was said, but for lines of progress: how many there are depends on when somebody looked."""
    return [leveled(line) for line in text.splitlines() if not _PROGRESS.match(line)]


def expected(step: Step) -> int:
    """The exit status that the page's reader would see."""
    if step.command.startswith("timeout "):
        return _INTERRUPTED
    return int(any(refusal in step.shown for refusal in _REFUSALS))


def test_the_page_is_not_empty() -> None:
    commands = " ".join(step.command for step in steps(PAGE))
    for tool in ("run", "check", "plan", "migrate", "history"):
        assert f"sealift {tool}" in commands


@pytest.mark.timeout(6 * PATIENCE_S)
def test_every_command_answers_what_the_page_shows(sealift: Callable[..., Sealift], shell: Shell) -> None:
    started: dict[str, Sealift] = {}
    for step in steps(PAGE):
        if step.command.startswith("sealift run "):
            if step.command in started:
                started[step.command].wait()  # the reader sees that it has ended
            process = started[step.command] = sealift(*shlex.split(step.command)[1:])
            process.stderr.wait_for(step.shown.splitlines()[-1])
            continue
        status, output = shell(step.command)
        assert spoken(output) == spoken(step.shown), step.command
        assert bool(_PROGRESS.search(output)) == bool(_PROGRESS.search(step.shown)), step.command
        assert status == expected(step), step.command


def test_every_code_is_explained_with_its_severity() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (blocker|warning) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(code.value, "warning" if code in WARNINGS else "blocker") for code in Code]
