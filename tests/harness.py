"""Running ``sealift`` as its users do, and watching it: processes whose output can be waited for."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

PATIENCE_S = 40.0
"""How long a test waits for what takes a second; only a machine under heavy load, or a bug, needs more."""


class Transcript:
    """What a process printed, collected as it comes."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._text = b""
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, args=(pipe,), daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """Everything so far."""
        with self._changed:
            return self._text.decode(errors="replace")

    def wait_for(self, part: str, after: int = 0) -> str:
        """Wait until `part` was printed behind the first `after` characters; everything printed so far."""
        return self.wait_until(lambda text: part in text[after:], repr(part))

    def wait_until(self, satisfied: Callable[[str], bool], wish: str) -> str:
        """Wait until what was printed is satisfying; everything printed so far. `wish` says what was hoped for."""
        with self._changed:
            self._changed.wait_for(lambda: satisfied(self.text) or self._ended, PATIENCE_S)
        assert satisfied(self.text), f"{wish} was not printed; this was: {self.text}"
        return self.text

    def finish(self) -> str:
        """Everything, once the process has ended."""
        self._thread.join(PATIENCE_S)
        return self.text

    def _collect(self, pipe: IO[bytes]) -> None:
        with pipe:
            while data := os.read(pipe.fileno(), 65536):
                with self._changed:
                    self._text += data
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Sealift:
    """One ``sealift`` process."""

    def __init__(self, *arguments: str | Path, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.process = subprocess.Popen(
            # Tethered: should the tests be killed, no guest is left behind.
            [sys.executable, "-m", "sealift.cli.tethered", str(os.getpid()), *self.arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.stdout = Transcript(self.process.stdout)
        self.stderr = self.stdout if self.process.stderr is None else Transcript(self.process.stderr)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        status = self.process.wait(PATIENCE_S)
        self.stdout.finish()
        self.stderr.finish()
        return status

    def close(self) -> None:
        """End it, if a test did not get to it."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def report(self) -> str:
        """For a failed test."""
        return f"exit status {self.process.poll()}\n{self.stdout.text}\n--- stderr\n{self.stderr.text}"


def processes_naming(path: Path | str) -> dict[int, list[str]]:
    """Command lines of the processes that have `path` in theirs: platforms and owners name their directories."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(str(path) in word for word in words):
                found[int(entry.name)] = words
    return found


def wait_for_end_of(pids: list[int]) -> None:
    """Wait until processes that are not our children have ended."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended = readable(descriptor, PATIENCE_S)
        finally:
            os.close(descriptor)
        assert ended, f"process {pid} lives on"


def readable(descriptor: int, patience_s: float) -> bool:
    """Whether a descriptor has something to read, or is at its end, in this time; a process' means that it ended."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, patience_s) * 1e3))
