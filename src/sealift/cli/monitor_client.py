"""A user of the human monitor: one line at a time, and on a terminal a line editor with a history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, TextIO

import click

from sealift.cli import rundir
from sealift.errors import LostError, UserError
from sealift.vmm.qmp.prompt import PROMPT

_READ_SIZE: Final = 64 * 1024
_PROMPT: Final = PROMPT.encode()


class MonitorClient:
    """A connection to the monitor of a guest, at its prompt; use it as a context manager.

    Attributes:
        greeting: what the monitor says of itself.

    Raises:
        UserError: no guest of that name runs.
        LostError: it has just ended.
    """

    def __init__(self, run: Path, guest: str) -> None:
        self.guest = guest
        self._sock = rundir.connect(run, guest, rundir.MONITOR_SOCKET)
        try:
            self.greeting = self._answer()
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> MonitorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, line: str) -> str:
        """What the monitor answers to a line.

        Raises:
            UserError: it is more than one line.
            LostError: the guest has ended, perhaps by this very line.
        """
        if "\n" in line:
            raise UserError("the monitor takes one line at a time")
        try:
            self._sock.sendall(f"{line}\n".encode())
        except OSError as error:
            raise self._lost() from error
        return self._answer()

    def _answer(self) -> str:
        """All up to the prompt, which stands at the beginning of a line."""
        received = bytearray()
        while received != _PROMPT and not received.endswith(b"\n" + _PROMPT):
            try:
                data = self._sock.recv(_READ_SIZE)
            except OSError as error:
                raise self._lost() from error
            if not data:
                raise self._lost()
            received += data
        return received.removesuffix(_PROMPT).decode(errors="replace").replace("\r\n", "\n")

    def _lost(self) -> LostError:
        return LostError(f"the VMM of {self.guest} has ended")


def converse(monitor: MonitorClient, source: TextIO) -> None:
    """Carry out lines from `source` until its end, or the guest's.

    Raises:
        LostError: the guest has ended before the last line.
    """
    if not source.isatty():
        for line in source:
            click.echo(monitor.ask(line.rstrip("\r\n")), nl=False)
        return
    import readline  # noqa: F401  # gives input() its editing and history

    click.echo(monitor.greeting, nl=False)
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()  # as a shell: only the line is given up
            continue
        if line.strip():
            click.echo(monitor.ask(line), nl=False)
            sys.stdout.flush()
