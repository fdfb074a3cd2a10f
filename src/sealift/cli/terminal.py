"""A guest's console on this terminal: bytes both ways, until Ctrl-] or the guest's end.

Whatever ends it, signals included, the terminal is as it was before. A serial line has no window size: a guest learns
the terminal's from whoever tells it (``stty rows … cols …``, ``resize``).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Final

import click

from sealift.cli.printer import LineKeeper

DETACH: Final = b"\x1d"
"""Ctrl-], as in telnet and virsh: no shell or editor inside a guest needs it."""

_READ_SIZE: Final = 64 * 1024
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def attach(sock: socket.socket, name: str) -> None:
    """Show and feed the console behind `sock`; on a terminal keys go through as they are typed."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"sealift: attached to {name}; Ctrl-] detaches", err=True)
    screen = LineKeeper(sys.stdout.buffer)
    with _raw_keys() if interactive else contextlib.nullcontext():
        reason = _shuttle(sock, screen)
    screen.end_line()
    if interactive:
        click.echo(f"sealift: {reason.format(name=name)}", err=True)


def _shuttle(sock: socket.socket, screen: LineKeeper) -> str:
    """Move bytes until one side ends; why it ended."""
    # Not epoll, which refuses regular files: input from a file is always there, until its end.
    with selectors.PollSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sock:
                    if not _show(sock, screen):
                        return "guest {name} ended"
                elif not _type(sock):
                    if sys.stdin.isatty():
                        return "detached from {name}, which runs on"
                    selector.unregister(sys.stdin.fileno())


def _show(sock: socket.socket, screen: LineKeeper) -> bool:
    """Pass on what the guest printed; False at its end."""
    try:
        data = sock.recv(_READ_SIZE)
    except ConnectionError:
        return False
    screen.write(data)
    screen.flush()
    return bool(data)


def _type(sock: socket.socket) -> bool:
    """Pass on what was typed; False when the user wants to leave."""
    try:
        typed = os.read(sys.stdin.fileno(), _READ_SIZE)
    except OSError:
        typed = b""  # the terminal is gone
    before, detach, _ = typed.partition(DETACH)
    with contextlib.suppress(OSError):  # the guest is gone: the other direction will say so
        sock.sendall(before)
    return bool(typed) and not detach


@contextlib.contextmanager
def _raw_keys() -> Iterator[None]:
    """Give the guest every key as it is typed, and the terminal back as it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    with _signals_end_this():
        try:
            tty.setraw(descriptor, termios.TCSANOW)
            keys_only = termios.tcgetattr(descriptor)
            keys_only[1] = before[1]  # output flags: guests end lines with a line feed alone
            termios.tcsetattr(descriptor, termios.TCSANOW, keys_only)
            yield
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            # Now: a terminal whose output is held up would make us wait. One that has hung up is nobody's any more.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextlib.contextmanager
def _signals_end_this() -> Iterator[None]:
    """Signals that ask this process to end let it tidy up first."""
    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
