"""Any number of hosts that one guest could be on: each with a handler, and an owner that approves receivers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.sealer import Pull
from sealift.launch.secrets import MigrationSecret, pair_key
from sealift.wire.record import MAX_RECORD
from sealift.wire.token import TokenKind

from .rig import SOURCE_FACTS, FakeClock, FakeGuest


@dataclass(eq=False)
class Party:
    """One host: a launch that the owner released, its memory and its handler. An attacker has the VMM.

    Attributes:
        sealed: what the handler sealed for its last migration, in order.
    """

    name: str
    facts: LaunchFacts
    secret: MigrationSecret
    guest: FakeGuest
    handler: MigrationHandler
    sealed: list[bytes] = field(default_factory=list)
    _pulls: int = 0

    @property
    def runs(self) -> bool:
        """Whether the guest runs here."""
        return self.handler.may_run

    def offer(self) -> bytes:
        """Begin a migration from here."""
        offer = self.handler.offer()
        self.sealed, self._pulls = [], 0
        self.guest.halted = False
        return offer

    def cancel(self) -> None:
        """Give it up."""
        self.handler.cancel()
        self.guest.halted = False

    def round(self) -> None:
        """Seal a round."""
        self.handler.begin_epoch()
        slot = memoryview(bytearray(MAX_RECORD))
        while True:
            self._pulls += 1
            sealed = self.handler.pull(Pull(0, self._pulls, 64), slot)
            if not sealed.length:
                break
            self.sealed.append(bytes(slot[: sealed.length]))
        self.sealed.append(self.handler.end_epoch(0))

    def finish(self) -> None:
        """Stop, seal the last round and the state, and close."""
        self.guest.halted = True
        self.handler.stop()
        self.round()
        slot = memoryview(bytearray(MAX_RECORD))
        while (sealed := self.handler.seal_state(slot)).length:
            self.sealed.append(bytes(slot[: sealed.length]))
        self.sealed.append(self.handler.close())

    def take(self, records: list[bytes]) -> None:
        """Open them all."""
        for record in records:
            self.handler.open(memoryview(record))


class Owner:
    """Launches one guest, and approves receivers for it; all hosts are genuine."""

    def __init__(self) -> None:
        self._clock = FakeClock()
        self._instance = os.urandom(16)
        self._launched = 0

    def launch(self) -> Party:
        """The guest, on its first host."""
        return self._party(Role.SOURCE, MigrationSecret(self._instance, os.urandom(32)), SOURCE_FACTS)

    def receiver(self, source: Party) -> Party:
        """A receiver for the guest as it was launched, or received, there."""
        facts = replace(SOURCE_FACTS, measure=os.urandom(48))
        pair = pair_key(source.secret.key, facts.measure)
        party = self._party(Role.TARGET, MigrationSecret(self._instance, os.urandom(32), pair), facts)
        for page in range(party.guest.pages):
            party.guest.write(page, b"receiver image")
        return party

    def _party(self, role: Role, secret: MigrationSecret, facts: LaunchFacts) -> Party:
        self._launched += 1
        guest = FakeGuest(facts.layout.pages)
        handler = MigrationHandler(role, facts, secret, guest.parts(), self._clock)
        return Party(f"host {self._launched}", facts, secret, guest, handler)


def agree(source: Party, target: Party) -> None:
    """The key exchange."""
    target.handler.confirmed(source.handler.confirm(target.handler.answer(source.offer())))


def prepare(source: Party, target: Party) -> bytes:
    """A migration up to the target's PREPARED."""
    agree(source, target)
    source.finish()
    target.take(source.sealed)
    return target.handler.token(TokenKind.PREPARED)


def move(source: Party, target: Party) -> None:
    """A whole migration."""
    source.handler.deliver(prepare(source, target))
    target.handler.deliver(source.handler.token(TokenKind.FINAL))
    source.handler.deliver(target.handler.token(TokenKind.STARTED))
    assert (source.handler.state, target.handler.state) == (State.GONE, State.STARTED)
