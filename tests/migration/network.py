"""A hostile network between two hosts of a test: `sealift.tamper`, whose messages can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sealift.tamper.events import Entry, Event, Summary
from sealift.tamper.relay import Road, Tamperer
from sealift.tamper.rulebook import Rulebook
from sealift.tamper.rules import Chances, parse
from sealift.vmm.migration.transport import Listener, NetworkAddress, TcpAddress, connect

from . import rig


class Network:
    """A tamperer, what it said, and the times that it would have waited.

    Attributes:
        at: what is to be done when a message comes by, before it is passed on.
    """

    def __init__(self, target: NetworkAddress, rules: tuple[str, ...], seed: int) -> None:
        self.log: list[Entry] = []
        self.waits: list[float] = []
        self.at: dict[str, Callable[[], None]] = {}
        self._tampered = threading.Event()
        self.listener = Listener(TcpAddress("127.0.0.1", 0))
        book = Rulebook([parse(rule) for rule in rules], Chances(seed))
        road = Road(self.listener, lambda: connect(self._target))
        self.tamperer = Tamperer(road, book, self._hear, lambda _, seconds: self.waits.append(seconds))
        self._target = target

    @property
    def uri(self) -> str:
        """Where sources go."""
        return str(self.listener.address)

    def names(self, side: str) -> list[str]:
        """Messages of a side in the order in which they came."""
        return [entry.message for entry in self.log if entry.event is Event.MESSAGE and entry.side == side]

    def done(self) -> list[str]:
        """What was done, in words."""
        return [f"{entry.message}#{entry.number} {entry.words}" for entry in self.log if entry.event is Event.TAMPERED]

    def summary(self) -> Summary:
        """At the end."""
        return self.tamperer.summary()

    def tampered(self) -> None:
        """Wait until something was done to a message."""
        assert self._tampered.wait(rig.PATIENCE_S)

    def _hear(self, entry: Entry) -> None:
        self.log.append(entry)
        if entry.event is Event.TAMPERED:
            self._tampered.set()
        if entry.event is Event.MESSAGE and entry.message in self.at:
            self.at[entry.message]()

    def lead_to(self, attempt: rig.Attempt) -> None:
        """A migration goes this way."""
        address = attempt.incoming.address
        assert isinstance(address, TcpAddress)
        self._target = address
        attempt.uri = self.uri


@contextmanager
def tampering(target: NetworkAddress, *rules: str, seed: int = 1) -> Iterator[Network]:
    """A tamperer on the way to a target; time that it waits is not waited."""
    made = Network(target, rules, seed)
    serving = threading.Thread(target=made.tamperer.serve)
    serving.start()
    try:
        yield made
    finally:
        made.tamperer.close()
        serving.join(rig.PATIENCE_S)
        made.listener.close()
        assert not serving.is_alive()


@contextmanager
def network(attempt: rig.Attempt, *rules: str, seed: int = 1) -> Iterator[Network]:
    """The same on the way of a migration."""
    address = attempt.incoming.address
    assert isinstance(address, TcpAddress)
    with tampering(address, *rules, seed=seed) as made:
        attempt.uri = made.uri
        yield made
