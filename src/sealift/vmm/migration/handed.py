"""Connections that need no listening: ``fd:N``, a socket that this process was given, and ``exec:COMMAND``.

A command's standard input and output are one socket here, since what comes back counts as much as what goes out.
``exec:ssh host socat - UNIX:b.sock`` carries a migration through anything that carries bytes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import threading
from dataclasses import dataclass
from typing import Final, TypeAlias

from sealift.errors import LostError, UserError

_LOOK_EVERY_MS: Final = 100

_LAST_WORDS_S: Final = 5.0
"""A command ends when its input does and it has passed everything on; one that has not by then is ended."""


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A connected stream socket by its descriptor, which a connection takes over."""

    fd: int

    def __str__(self) -> str:
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class ExecAddress:
    """A command for the shell that carries the stream."""

    command: str

    def __str__(self) -> str:
        return f"exec:{self.command}"


HandedAddress: TypeAlias = FdAddress | ExecAddress
"""What gives exactly one connection."""


def take(address: HandedAddress) -> socket.socket:
    """The connection.

    Raises:
        UserError: the descriptor is no connected stream socket, or the command cannot be started.
    """
    match address:
        case FdAddress(fd):
            return _given(fd)
        case ExecAddress(command):
            return _started(command)


def _given(fd: int) -> socket.socket:
    try:
        fits = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise UserError(f"this process has no descriptor {fd}") from error
    if not fits:
        raise UserError(f"descriptor {fd} is no socket; a migration needs one, since both sides speak")
    sock = socket.socket(fileno=fd)
    if sock.type is not socket.SOCK_STREAM or not _is_connected(sock):
        sock.detach()
        raise UserError(f"descriptor {fd} is no connected stream socket")
    if not sock.get_inheritable():  # as all are that were opened or received here
        sock.detach()
        raise UserError(f"descriptor {fd} is this process's own; name one that `sealift run` was started with")
    sock.set_inheritable(False)
    sock.settimeout(None)
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _started(command: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command], stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
            )
        except OSError as error:
            ours.close()
            raise UserError(f"the command {command!r:.80} cannot be started") from error
        watched = theirs.dup()
    threading.Thread(target=_attend, args=(process, watched), name="exec", daemon=True).start()
    return ours


def _attend(process: subprocess.Popen[bytes], theirs: socket.socket) -> None:
    """End a command whose connection we gave up, and a connection whose command has ended."""
    poll = select.poll()
    poll.register(theirs, 0)  # POLLHUP is told unasked
    with theirs:
        while process.poll() is None and not poll.poll(_LOOK_EVERY_MS):
            pass
    for end in (signal.SIGTERM, signal.SIGKILL):
        try:
            process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, end)
    process.wait()


class OneConnection:
    """What a target listens at that has its connection already; as `transport.Listener`.

    Attributes:
        address: where it came from.
    """

    def __init__(self, address: HandedAddress) -> None:
        self.address = address
        self._sock: socket.socket | None = take(address)
        self._ended = threading.Event()

    def accept(self) -> socket.socket:
        """The connection; the second time, wait for `wake` or `close`.

        Raises:
            LostError: one of these was called.
        """
        sock, self._sock = self._sock, None
        if sock is not None:
            return sock
        self._ended.wait()
        raise LostError(f"listening on {self.address} ended")

    def wake(self) -> None:
        """End a waiting `accept`, from any thread."""
        self._ended.set()

    def close(self) -> None:
        """Let go of a connection that nobody accepted."""
        self.wake()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
