"""``sealift monitor``: by words, from standard input, and at a terminal."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.test_commands import SMALL, answer, running
from cli.test_console import IN_ITS_TERMINAL
from harness import PATIENCE_S, Sealift


def test_a_line_is_carried_out_and_its_answer_is_all_that_is_printed(sealift: Callable[..., Sealift]) -> None:
    process = running(sealift, "a", *SMALL)
    assert answer(sealift, "monitor", "a", "info", "status") == "VM status: running\n"
    assert answer(sealift, "monitor", "a", "stop") == ""
    assert answer(sealift, "monitor", "a", "info status") == "VM status: paused\n"
    ended = sealift("monitor", "a", "quit")
    assert process.wait() == 0
    assert ended.wait() in {0, 1}  # the answer may be lost with who gives it
    assert "Traceback" not in ended.stderr.text


def test_lines_come_from_standard_input(sealift: Callable[..., Sealift]) -> None:
    running(sealift, "a", *SMALL)
    done = subprocess.run(
        [sys.executable, "-m", "sealift.cli", "monitor", "a"],
        input="stop\ninfo status\ninfo name\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "VM status: paused\na\n", "")


def test_without_such_a_guest_it_says_so(sealift: Callable[..., Sealift]) -> None:
    process = sealift("monitor", "nobody", "info", "status")
    assert process.wait() == 1
    assert "no guest named nobody runs on this host" in process.stderr.text


class Terminal:
    """`sealift monitor` at a terminal, and what is seen there."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_ITS_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> None:
        """Until it is seen; what was seen up to there is forgotten."""
        while text not in self.seen:
            assert select.select([self._master], [], [], PATIENCE_S)[0], self.seen
            self.seen += os.read(self._master, 4096).decode()
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def end(self) -> int:
        """The exit status, once it has ended."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it, if a test did not get to it."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(sealift: Callable[..., Sealift]) -> Iterator[Terminal]:
    """At the monitor of a guest."""
    running(sealift, "a", *SMALL)
    made = Terminal("monitor", "a")
    yield made
    made.close()


def test_at_a_terminal_lines_are_edited_and_remembered(terminal: Terminal) -> None:
    terminal.wait_for("type 'help' for more information")
    terminal.wait_for("(qemu) ")
    terminal.type("info nix\x7f\x7fame\n")
    terminal.wait_for("a\r\n")
    terminal.wait_for("(qemu) ")
    terminal.type("\x10\n")  # Ctrl-P: the line before
    terminal.wait_for("a\r\n")
    terminal.wait_for("(qemu) ")
    terminal.type("quit\x03")  # Ctrl-C gives up the line, and the guest lives on
    terminal.wait_for("(qemu) ")
    terminal.type("info status\n")
    terminal.wait_for("VM status: running")
    terminal.wait_for("(qemu) ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_it_is_served_where_it_is_asked_for_too(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    process = running(sealift, "a", *SMALL, "--monitor", f"unix:{tmp_path / 'm.sock'}")
    assert f"the monitor is served at unix:{tmp_path / 'm.sock'}" in process.stderr.text
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(tmp_path / "m.sock"))
        sock.sendall(b"info name\n")
        with sock.makefile("rb") as lines:
            lines.readline()
            assert lines.readline() == b"(qemu) a\r\n"
