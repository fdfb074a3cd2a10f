"""A snapshot's session: what the exchange is to a migration, without a peer.

The source makes a header with a fresh random id and derives the snapshot key from its own migration key; a receiver
got that key from the owner, who derives it for one header alone. So every snapshot has keys of its own, and a header
that was changed, or is another guest's, leads to keys that open nothing.
"""

from __future__ import annotations

import hashlib
import os

from sealift.errors import UserError
from sealift.guest.handler.exchange import MIGRATION_ID_SIZE, Session, check_same_guest, party_of
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.keys import derive_snapshot
from sealift.launch.secrets import MigrationSecret, snapshot_key
from sealift.wire.handshake import NO_PUBLIC, Hello, MessageKind, decode_snapshot


def begin(facts: LaunchFacts, secret: MigrationSecret, channels: int) -> tuple[Session, bytes]:
    """The source's side: a session, and the header of the snapshot it will seal."""
    party = party_of(facts, secret, NO_PUBLIC, channels)
    hello = Hello(MessageKind.SNAPSHOT, os.urandom(MIGRATION_ID_SIZE), party)
    header = hello.encode()
    return _session(hello, snapshot_key(secret.key, header), header), header


def follow(facts: LaunchFacts, secret: MigrationSecret, header: bytes) -> Session:
    """The receiver's side: take the header; the session that opens what follows.

    Raises:
        UserError: the owner released no snapshot key to this receiver.
        StreamError: the header does not parse.
        SealError: it is of another guest.
    """
    if secret.snapshot_key is None:
        raise UserError("the owner released no snapshot key to this receiver; ask it for this snapshot first")
    hello = decode_snapshot(header)
    check_same_guest(party_of(facts, secret, NO_PUBLIC, hello.party.channels), hello.party)
    return _session(hello, secret.snapshot_key, header)


def _session(hello: Hello, key: bytes, header: bytes) -> Session:
    digest = hashlib.sha256(header).digest()
    return Session(hello.migration, hello.party.channels, derive_snapshot(key, digest), digest)
