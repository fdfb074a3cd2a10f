"""What a guest prints on one host's console: how it is watched, and what a ledger's lines mean."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

from sealift.errors import GuestError

_READ_SIZE: Final = 64 * 1024
_PAYLOAD: Final = re.compile(r"payload sha256 ([0-9a-f]{64})")
_ENTRY: Final = re.compile(r"ledger (\d+) (\d+) ([0-9a-f]{64})")
FAULT: Final = "FAULT"
"""In every line of a guest that found damage."""


class Lines(Protocol):
    """What a kind of guest printed so far.

    Lines that the move cut in two appear as no whole line on either host and are left out, but for faults.
    """

    faults: list[str]

    def take(self, line: str) -> None:
        """Another line."""

    def copy(self) -> Self:
        """The same, to keep."""


P = TypeVar("P", bound=Lines)


@dataclass(frozen=True, slots=True)
class Entry:
    """``ledger VCPU UPDATES CHAIN``."""

    vcpu: int
    updates: int
    chain: str


@dataclass(slots=True)
class Printed:
    """`Lines` of a ledger.

    Attributes:
        payload: digests of the payload, in order.
        entries: ledger entries, in order.
        faults: lines that tell of one.
    """

    payload: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Another line."""
        if match := _PAYLOAD.fullmatch(line):
            self.payload.append(match[1])
        elif match := _ENTRY.fullmatch(line):
            self.entries.append(Entry(int(match[1]), int(match[2]), match[3]))
        elif FAULT in line:
            self.faults.append(line)

    def updates(self, vcpus: int) -> tuple[int, ...]:
        """The last count that each vCPU reported; 0 if none."""
        last = {entry.vcpu: entry.updates for entry in self.entries}
        return tuple(last.get(vcpu, 0) for vcpu in range(vcpus))

    def copy(self) -> Printed:
        """The same, to keep."""
        return Printed(list(self.payload), list(self.entries), list(self.faults))


class ConsoleWatcher(Generic[P]):
    """Reads a guest's console socket in a thread, until it ends; `printed` takes the lines."""

    def __init__(self, sock: socket.socket, printed: P) -> None:
        self._sock = sock
        self._printed = printed
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        self._thread.start()

    @property
    def printed(self) -> P:
        """A copy of what was printed so far."""
        with self._changed:
            return self._printed.copy()

    def wait(self, what: str, until: Callable[[P], bool], patience_s: float) -> P:
        """Wait for the guest to have printed something; what it has printed by then.

        Raises:
            GuestError: it found a fault, ended or is silent; `what` says what was waited for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._printed.faults or until(self._printed), patience_s)
            if self._printed.faults:
                raise GuestError(f"the guest found damage: {self._printed.faults[0]}")
            if until(self._printed):
                return self._printed.copy()
            how = "ended" if self._ended else f"took more than {patience_s:.0f} s"
            raise GuestError(f"the guest {how} before {what}")

    def close(self) -> None:
        """Stop reading."""
        with contextlib.suppress(OSError):  # the other end has gone before
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _read(self) -> None:
        rest = b""
        while data := self._receive():
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    self._printed.take(line.decode(errors="replace").rstrip("\r"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(_READ_SIZE)
        except OSError:
            return b""
