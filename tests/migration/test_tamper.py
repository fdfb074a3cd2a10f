"""`sealift.tamper` between two real hosts: every verb, with what becomes of the guest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sealift.tamper.events import Entry, Event, Summary
from sealift.tamper.relay import Road, Tamperer
from sealift.tamper.rulebook import Rulebook
from sealift.tamper.rules import Chances, parse
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.transport import Listener, TcpAddress, connect
from sealift.wire.handover import Method, Transfer
from sealift.wire.platform import Phase

from . import rig
from .certificates import Authority

PAGE_BY_PAGE = Parameters(transfer=Transfer.MAILBOX)
"""Many records, so that some have a number."""


@dataclass
class Network:
    """A tamperer and what it says."""

    uri: str
    tamperer: Tamperer
    log: list[Entry] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def names(self, side: str) -> list[str]:
        """Messages of a side in the order in which they came."""
        return [entry.message for entry in self.log if entry.event is Event.MESSAGE and entry.side == side]

    def done(self) -> list[str]:
        """What was done, in words."""
        return [f"{entry.message}#{entry.number} {entry.words}" for entry in self.log if entry.event is Event.TAMPERED]

    def summary(self) -> Summary:
        """At the end."""
        return self.tamperer.summary()


@contextmanager
def network(attempt: rig.Attempt, *rules: str, seed: int = 1) -> Iterator[Network]:
    """A tamperer on the way of a migration; time that it waits is not waited."""
    target = attempt.incoming.address
    assert isinstance(target, TcpAddress)
    listener = Listener(TcpAddress("127.0.0.1", 0))
    book = Rulebook([parse(rule) for rule in rules], Chances(seed))
    log: list[Entry] = []
    waits: list[float] = []
    tamperer = Tamperer(
        Road(listener, lambda: connect(target)), book, log.append, lambda _, seconds: waits.append(seconds)
    )
    serving = threading.Thread(target=tamperer.serve)
    serving.start()
    attempt.uri = str(listener.address)
    try:
        yield Network(attempt.uri, tamperer, log, waits)
    finally:
        tamperer.close()
        serving.join(rig.PATIENCE_S)
        listener.close()
        assert not serving.is_alive()


def test_without_rules_a_guest_moves_as_over_any_network(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt) as between:
        attempt.begin()
        assert attempt.end().status == "completed"
        assert between.tamperer.first_over.wait(rig.PATIENCE_S)
        names = between.names("source")
        print(names)
        print(between.log[:3], between.summary())
    attempt.guest().work(4)
