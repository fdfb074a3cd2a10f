"""docs/owner.md is true: every command in it is run, and must answer what the page shows but for keys and hashes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift, Transcript

PAGE = Path(__file__).parents[2] / "docs" / "owner.md"

_BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BASE64 = re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{43,}=*")
_HEX = re.compile(r"\b[0-9a-f]{16,}\b")
_SHELL = (
    *("/bin/bash", "-o", "pipefail", "-c"),
    "while IFS= read -r line; do eval \"$line\" 2>&1; printf '\\0%d\\n' $?; done",
)
"""Ends what each line prints with a NUL and the exit status."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FIGURE = re.compile(r"\b\d+(?= (?:private pages|records|bytes|ms)\b)")
_BACKGROUND = ("sealift run ", "sealift owner serve ")
"""What runs in a terminal of its own, unless its end is what the page shows."""


@dataclass(frozen=True)
class Step:
    """A command and what it prints; without a command, what the guest prints by now."""

    command: str
    shown: str


def steps() -> Iterator[Step]:
    """The page's steps in order."""
    for kind, text in _BLOCK.findall(PAGE.read_text()):
        if kind == "text":
            yield Step("", text)
            continue
        first, *commands = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not first, "a console block begins with a command"
        for lines in commands:
            command, _, shown = lines.partition("\n")
            yield Step(command, shown)


def leveled(text: str) -> str:
    """The text with what differs from run to run taken out."""
    return _FIGURE.sub("<n>", _TIME.sub("<time>", _HEX.sub("<hexadecimal>", _BASE64.sub("<base64>", text))))


def wait_for_lines(printed: Transcript, shown: str) -> None:
    """Wait until all lines that the page shows were printed, in whatever order."""
    lines = set(leveled(shown).splitlines())
    printed.wait_until(lambda text: lines <= set(leveled(text).splitlines()), shown)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[int, str]]]:
    """A shell that keeps its variables: takes a command line, gives the exit status and what was printed."""
    tool = tmp_path / "bin" / "sealift"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sealift.cli "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    with subprocess.Popen(_SHELL, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, printed = process.stdin, process.stdout

        def run(command: str) -> tuple[int, str]:
            given.write(f"{command}\n")
            given.flush()
            output = ""
            while True:
                line = printed.readline()
                assert line, f"the shell ended in {command}"
                before, mark, status = line.partition("\0")
                output += before
                if mark:
                    return int(status), output

        yield run
        given.close()


def test_the_page_is_not_empty() -> None:
    """Test that blocks are found: else nothing would be run, and nothing fail."""
    commands = [step.command for step in steps()]
    tools = ("chain", "session", "validate", "secret", "measure", "report")
    for tool in (*tools, "serve", "list", "revoke", "approve", "log", "receipt"):
        assert any(f"sealift owner {tool}" in command for command in commands)


@pytest.mark.timeout(4 * PATIENCE_S)
def test_every_command_answers_what_the_page_shows(
    sealift: Callable[..., Sealift],
    shell: Callable[[str], tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shell(f"cd {shlex.quote(str(tmp_path))}")
    guest: Sealift | None = None
    server: Sealift | None = None
    for step in steps():
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
            assert (status == 0) != output.startswith("sealift: "), step.command
    assert guest is not None
    assert guest.wait() == 0
    assert server is not None
    server.signal(signal.SIGINT)
    assert server.wait() == 0
