"""A guest's console on this terminal: bytes both ways, until Ctrl-] or the guest's end."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final

import click

from sealift.cli.printer import LineKeeper

DETACH: Final = b"\x1d"
"""Ctrl-], as in telnet and virsh: no shell or editor inside a guest needs it."""

_READ_SIZE: Final = 64 * 1024


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
    typed = os.read(sys.stdin.fileno(), _READ_SIZE)
    before, detach, _ = typed.partition(DETACH)
    with contextlib.suppress(OSError):  # the guest is gone: the other direction will say so
        sock.sendall(before)
    return bool(typed) and not detach


@contextlib.contextmanager
def _raw_keys() -> Iterator[None]:
    """Give the guest every key as it is typed, and the terminal back as it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    keys_only = termios.tcgetattr(descriptor)
    keys_only[1] = before[1]  # output flags: guests end lines with a line feed alone
    termios.tcsetattr(descriptor, termios.TCSADRAIN, keys_only)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
