"""docs/migration.md is true: every command in it is run, and must answer what the page shows but for figures."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift
from pages import Shell, Step, steps
from sealift.wire.obstacle import WARNINGS, Code

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"

_FIGURE = re.compile(r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b")
_PROGRESS = re.compile(r"sealift: demo: \w+")
_REFUSALS = ("cannot be moved", "does not converge", "converges, but not in time")
_PRESSED = re.compile(r"timeout -s INT \d+ sealift (.*)")
"""Ctrl-C after so many seconds: a reader's machine needs that many at most to come as far as the page shows."""
_UNDERWAY = "sealift: demo: active"


def leveled(line: str) -> str:
    """The line without what differs from run to run: figures, the width of columns, one round or several."""
    return re.sub(r"\s+", " ", _FIGURE.sub("N", line)).replace("rounds", "round").strip()


def spoken(text: str) -> list[str]:
    """What was said, but for lines of progress: how many there are depends on when somebody looked."""
    return [leveled(line) for line in text.splitlines() if not _PROGRESS.match(line)]


def expected(step: Step) -> int:
    """The exit status of the page's command."""
    return int(any(refusal in step.shown for refusal in _REFUSALS) or "was not moved" in step.shown)


def interrupted(process: Sealift) -> tuple[int, str]:
    """Press Ctrl-C as soon as the migration is seen to be underway; the exit status, and what was printed."""
    process.stderr.wait_for(_UNDERWAY)
    process.signal(signal.SIGINT)
    return process.wait(), process.stderr.text + process.stdout.text


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
        pressed = _PRESSED.fullmatch(step.command)
        status, output = interrupted(sealift(*shlex.split(pressed[1]))) if pressed else shell(step.command)
        assert spoken(output) == spoken(step.shown), step.command
        assert bool(_PROGRESS.search(output)) == bool(_PROGRESS.search(step.shown)), step.command
        assert status == expected(step), step.command


def test_every_code_is_explained_with_its_severity() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (blocker|warning) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(code.value, "warning" if code in WARNINGS else "blocker") for code in Code]
