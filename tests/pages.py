"""Pages of the documentation that are kept true: their commands, and a shell that runs them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(console|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = (
    *("/bin/bash", "-o", "pipefail", "-c"),
    "while IFS= read -r line; do eval \"$line\" 2>&1; printf '\\0%d\\n' $?; done",
)
"""Ends what each line prints with a NUL and the exit status."""

Shell = Callable[[str], tuple[int, str]]
"""Takes a command line, gives the exit status and what was printed."""


@dataclass(frozen=True)
class Step:
    """A command and what it prints; without a command, what a guest prints by now."""

    command: str
    shown: str


def steps(page: Path) -> Iterator[Step]:
    """The page's steps in order."""
    for kind, text in _BLOCK.findall(page.read_text()):
        if kind == "text":
            yield Step("", text)
            continue
        first, *commands = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not first, "a console block begins with a command"
        for lines in commands:
            command, _, shown = lines.partition("\n")
            yield Step(command, shown)


def install(directory: Path) -> Path:
    """Put a ``sealift`` there that is the one under test."""
    tool = directory / "sealift"
    directory.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m sealift.cli "$@"\n')
    tool.chmod(0o755)
    return tool


@contextmanager
def open_shell() -> Iterator[Shell]:
    """A shell that keeps its variables."""
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
