"""The key exchange: who the peer is, whether it may have this guest, and the keys shared with it.

The source always begins. It derives the pair key P from its own migration key and the LAUNCH_MEASURE output that
the target states; the target got P from the owner. A target that states another measurement than its own, or that
the owner did not approve, ends up with other keys, and its HMAC fails.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from sealift.errors import SealError, UserError
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.keys import SessionKeys, derive, mac, mac_matches
from sealift.launch.secrets import MigrationSecret, pair_key
from sealift.wire.handshake import (
    Confirm,
    Hello,
    MessageKind,
    Party,
    decode_answer,
    decode_confirm,
    decode_offer,
    transcript,
)
from sealift.wire.record import FIRST_LEG

MIGRATION_ID_SIZE = 16

NO_KEY = (
    "the guest's owner gave no migration key with the launch secret, so this guest cannot be migrated by its "
    "handler; relaunch it with a secret that holds one"
)
"""No key, no guest-assisted migration: that is how an owner opts in."""


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides share after an exchange, or who seals and who opens a snapshot.

    `peer` is the other side's LAUNCH_MEASURE output; empty for a snapshot, which has none. `leg` counts the times that
    the connections were made, and `keys` for records are those of that leg.
    """

    migration: bytes
    channels: int
    keys: SessionKeys
    transcript: bytes
    peer: bytes = b""
    leg: int = FIRST_LEG


class Initiator:
    """The source's side of one exchange.

    Attributes:
        offer: the OFFER message.
    """

    def __init__(self, facts: LaunchFacts, secret: MigrationSecret, channels: int) -> None:
        self._secret = secret
        self._private = X25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self._hello = Hello(MessageKind.OFFER, os.urandom(MIGRATION_ID_SIZE), party_of(facts, secret, public, channels))
        self.offer = self._hello.encode()

    def finish(self, data: bytes) -> tuple[Session, bytes]:
        """Take the ANSWER; give the session and the CONFIRM message.

        Raises:
            StreamError: it does not parse.
            SealError: it is for another exchange, of another guest, or its sender lacks the pair key.
        """
        answer = decode_answer(data)
        peer = answer.hello.party
        _check_same_exchange(answer.hello.migration, self._hello.migration)
        check_same_guest(self._hello.party, peer)
        shared = _agree(self._private, self._hello.party.public, peer.public)
        seen = transcript(self.offer, answer.body)
        keys = derive(pair_key(self._secret.key, peer.measure), shared, seen)
        if not mac_matches(keys.confirm_target, seen, answer.mac):
            raise SealError(
                "the target's answer is not authentic: it was changed, or the owner approved another receiver"
            )
        session = Session(self._hello.migration, peer.channels, keys, seen, peer.measure)
        return session, Confirm(session.migration, mac(keys.confirm_source, seen)).encode()


def respond(facts: LaunchFacts, secret: MigrationSecret, data: bytes) -> tuple[Session, bytes]:
    """The target's side: take the OFFER; give the session (not yet confirmed) and the ANSWER message.

    Raises:
        UserError: the owner released no pair key to this receiver.
        StreamError: the offer does not parse.
        SealError: it is for another guest.
    """
    if secret.pair_key is None:
        raise UserError(
            "the owner released no pair key to this receiver; have the owner approve it for the guest first"
        )
    offer = decode_offer(data)
    private = X25519PrivateKey.generate()
    own = party_of(facts, secret, private.public_key().public_bytes_raw(), offer.party.channels)
    check_same_guest(own, offer.party)
    shared = _agree(private, own.public, offer.party.public)
    body = Hello(MessageKind.ANSWER, offer.migration, own).encode()
    seen = transcript(data, body)
    keys = derive(secret.pair_key, shared, seen)
    session = Session(offer.migration, offer.party.channels, keys, seen, offer.party.measure)
    return session, body + mac(keys.confirm_target, seen)


def check_confirm(session: Session, data: bytes) -> None:
    """The target's last step: the source has the same keys and saw the same transcript.

    Raises:
        StreamError: it does not parse.
        SealError: it is for another exchange, or its sender lacks the pair key.
    """
    confirm = decode_confirm(data)
    _check_same_exchange(confirm.migration, session.migration)
    if not mac_matches(session.keys.confirm_source, session.transcript, confirm.mac):
        raise SealError("the source's confirmation is not authentic: its sender lacks the pair key")


def party_of(facts: LaunchFacts, secret: MigrationSecret, public: bytes, channels: int) -> Party:
    """What this side says of itself and its guest."""
    return Party(
        instance=secret.instance_id,
        measure=facts.measure,
        public=public,
        policy=facts.policy,
        cbit=facts.cbit,
        channels=channels,
        vcpus=facts.vcpus,
        mailbox_gpa=facts.mailbox_gpa,
        layout=facts.layout,
        excluded=facts.excluded,
    )


def _agree(private: X25519PrivateKey, own: bytes, peer: bytes) -> bytes:
    if peer == own:
        raise SealError("the peer sent back our own public key")
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise SealError("the peer's public key is of low order") from error


def _check_same_exchange(found: bytes, wanted: bytes) -> None:
    if found != wanted:
        raise SealError("a handshake message belongs to another migration")


_MUST_EQUAL = {
    "instance": "instance id",
    "policy": "policy",
    "cbit": "C-bit position",
    "channels": "number of channels",
    "vcpus": "number of vCPUs",
    "mailbox_gpa": "mailbox address",
    "layout": "RAMBlock table",
    "excluded": "set of excluded pages",
}
"""What both parties must state alike, by the words used in messages."""


def check_same_guest(own: Party, peer: Party) -> None:
    """The peer must state what this side does.

    Raises:
        SealError: it does not; all differences are named, not just the first.
    """
    differing = [name for field, name in _MUST_EQUAL.items() if getattr(own, field) != getattr(peer, field)]
    if differing:
        raise SealError(f"the peer's guest is not this one: its {', '.join(differing)} differ")
