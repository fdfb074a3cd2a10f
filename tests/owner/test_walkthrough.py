"""docs/owner.md is true: every command in it is run, and must answer what the page shows but for keys and hashes."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift, Transcript
from pages import Shell, steps

PAGE = Path(__file__).parents[2] / "docs" / "owner.md"

_BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{43,}=*")
_HEX = re.compile(r"\b[0-9a-f]{16,}\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FIGURE = re.compile(r"\b\d+(?= (?:private pages|records|bytes|ms)\b)")
_BACKGROUND = ("sealift run ", "sealift owner serve ")
"""What runs in a terminal of its own, unless its end is what the page shows."""


def leveled(text: str) -> str:
    """The text with what differs from run to run taken out."""
    return _FIGURE.sub("<n>", _TIME.sub("<time>", _HEX.sub("<hexadecimal>", _BASE64.sub("<base64>", text))))


def wait_for_lines(printed: Transcript, shown: str) -> None:
    """Wait until all lines that the page shows were printed, in whatever order."""
    lines = set(leveled(shown).splitlines())
    printed.wait_until(lambda text: lines <= set(leveled(text).splitlines()), shown)


def test_the_page_is_not_empty() -> None:
    """Test that blocks are found: else nothing would be run, and nothing fail."""
    commands = [step.command for step in steps(PAGE)]
    tools = ("sign", "chain", "session", "validate", "secret", "measure", "report")
    for tool in (*tools, "serve", "list", "revoke", "approve", "log", "receipt"):
        assert any(f"sealift owner {tool}" in command for command in commands)


@pytest.mark.timeout(4 * PATIENCE_S)
def test_every_command_answers_what_the_page_shows(
    sealift: Callable[..., Sealift],
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shell(f"cd {shlex.quote(str(tmp_path))}")
    guest: Sealift | None = None
    server: Sealift | None = None
    for step in steps(PAGE):
        if step.command.startswith(_BACKGROUND) and "|" not in step.command:
            started = sealift(*shlex.split(step.command)[1:])
            wait_for_lines(started.stderr, step.shown)
            if step.command.startswith("sealift run "):
                guest = started
            else:
                server = started
        elif not step.command:
            assert guest is not None
            wait_for_lines(guest.stdout, step.shown)
        else:
            status, output = shell(step.command)
            assert leveled(output) == leveled(step.shown), step.command
            assert (status == 0) != any(line.startswith("sealift: ") for line in output.splitlines()), step.command
    assert guest is not None
    assert guest.wait() == 0
    assert server is not None
    server.signal(signal.SIGINT)
    assert server.wait() == 0
