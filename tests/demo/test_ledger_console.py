"""What a ledger prints is read as it is meant, and the owner's own computation of it is right."""

from __future__ import annotations

import socket

import pytest

from programs import model
from sealift.cli.demo.chain import LedgerChain
from sealift.cli.demo.console import ConsoleWatcher, Entry, Printed
from sealift.errors import GuestError

CHAIN = "ab" * 32


@pytest.mark.parametrize("secret", [b"", b"a secret of 20 bytes", bytes(range(1, 65)), b"x" * 600])
def test_the_chain_is_that_of_the_description(secret: bytes) -> None:
    """`programs.model` computes it plainly, one word after the other, and is itself compared with guests."""
    expected = model.chains(1, 40, 8, secret)
    chain = LedgerChain(1, 8, secret)
    assert [chain.after(updates) for updates in (40, 0, 17)] == [expected[40], expected[0], expected[17]]


def test_another_secret_gives_another_chain() -> None:
    assert LedgerChain(0, 8, b"one").after(1) != LedgerChain(0, 8, b"two").after(1)


def watched() -> tuple[socket.socket, ConsoleWatcher[Printed]]:
    """A console's other end, and its watcher."""
    ours, theirs = socket.socketpair()
    return ours, ConsoleWatcher(theirs, Printed())


def test_whole_lines_count_and_lines_cut_by_a_move_do_not() -> None:
    console, watcher = watched()
    console.sendall(f"dger 0 64 {CHAIN}\npayload sha256 {CHAIN}\nledger 1 32 {CHAIN}\nledger 0 9".encode())
    seen = watcher.wait("it came", lambda seen: bool(seen.entries), 20)
    console.close()
    watcher.close()
    assert seen.entries == [Entry(1, 32, CHAIN)]
    assert seen.payload == [CHAIN]
    assert seen.updates(2) == (0, 32)


def test_a_fault_ends_every_wait_even_when_its_line_was_cut() -> None:
    console, watcher = watched()
    console.sendall(b"edger FAULT 0 stale page 3\n")
    with pytest.raises(GuestError, match="damage: edger FAULT 0 stale page 3"):
        watcher.wait("it came", lambda _: False, 20)
    console.close()
    watcher.close()


def test_the_end_of_a_console_ends_the_wait() -> None:
    console, watcher = watched()
    console.close()
    with pytest.raises(GuestError, match="ended before it came"):
        watcher.wait("it came", lambda _: False, 20)
    watcher.close()
