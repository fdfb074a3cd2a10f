"""The key exchange between two migration handlers: three messages, source first.

::

    source                                                      target (receiver image)
      │── OFFER:   source's facts, X25519 key ────────────────────►│  same guest? same policy? then keys
      │◄── ANSWER: target's facts, X25519 key, HMAC(target) ───────│
      │   derives the pair key from the target's measurement       │
      │── CONFIRM: HMAC(source) ──────────────────────────────────►│  now records may come

The transcript, ``len(OFFER) ‖ OFFER ‖ len ‖ ANSWER without its HMAC``, goes into every key, so nothing in it can be
changed: versions, roles, migration id, instance id, measurements, policies, C-bit, RAMBlock table, vCPU count,
mailbox and excluded pages, number of channels, both public keys. Little-endian; version `VERSION` and no other.

A SNAPSHOT is the header of a snapshot: an OFFER to nobody in particular, with a random snapshot id and without a key.
Nobody answers it; whoever is to open what follows needs the key that the guest's owner derives for this very header.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import StreamError, UserError
from sealift.wire.record import MAX_CHANNELS

MAGIC = b"SLKX"
VERSION = 1

MEASURE_SIZE = 48
"""LAUNCH_MEASURE output: measurement (32) and nonce (16)."""

MAX_BLOCKS = 64
"""RAMBlocks of one guest; real machines have a handful."""

MAX_EXCLUDED = 1024
"""Pages that never travel: mailbox and the like."""

MAC_SIZE = 32

NO_PUBLIC = bytes(32)
"""Stands for the public key where no keys are exchanged."""

_HEADER = struct.Struct("<4sHH16s")
_FACTS = struct.Struct("<16s48s32sIHHIIIQ")
_BLOCK = struct.Struct("<QQB")
_PAGE = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")

MAX_MESSAGE = _HEADER.size + _FACTS.size + MAX_BLOCKS * (_BLOCK.size + 255) + MAX_EXCLUDED * _PAGE.size + MAC_SIZE
"""Bytes of the longest message; whatever is longer is refused unread."""


class MessageKind(enum.IntEnum):
    """Which of the three messages (the kind also says the sender's role), or a snapshot's header. 0 is invalid."""

    OFFER = 1
    ANSWER = 2
    CONFIRM = 3
    SNAPSHOT = 4


class _Reader:
    """Takes bytes from the front of one message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            StreamError: fewer are left.
        """
        found = self._data[self._at : self._at + length]
        if len(found) != length:
            raise StreamError("a handshake message is truncated")
        self._at += length
        return found

    def unpack(self, shape: struct.Struct) -> tuple[Any, ...]:
        """The next fields of `shape`."""
        return shape.unpack(self.take(shape.size))

    def finish(self) -> None:
        """Nothing may be left.

        Raises:
            StreamError: something is.
        """
        if self._at != len(self._data):
            raise StreamError(f"a handshake message has {len(self._data) - self._at} bytes too many")


@dataclass(frozen=True, slots=True)
class Party:
    """What one side says of itself and its guest.

    Attributes:
        instance: the owner's id of the guest, 16 bytes.
        measure: the side's own LAUNCH_MEASURE output, 48 bytes.
        public: ephemeral X25519 public key, 32 bytes.
        excluded: RAM pages that never travel, ascending.
    """

    instance: bytes
    measure: bytes
    public: bytes
    policy: int
    cbit: int
    channels: int
    vcpus: int
    mailbox_gpa: Gpa
    layout: RamLayout
    excluded: tuple[int, ...]

    def encode(self) -> bytes:
        """Fixed part, RAMBlock table, excluded pages."""
        parts = [
            _FACTS.pack(
                self.instance,
                self.measure,
                self.public,
                self.policy,
                self.cbit,
                self.channels,
                self.vcpus,
                len(self.layout.blocks),
                len(self.excluded),
                self.mailbox_gpa,
            )
        ]
        for block in self.layout.blocks:
            name = block.name.encode()
            parts.append(_BLOCK.pack(block.gpa, block.size, len(name)) + name)
        parts.extend(_PAGE.pack(page) for page in self.excluded)
        return b"".join(parts)

    @classmethod
    def read(cls, reader: _Reader) -> Party:
        """Parse one party.

        Raises:
            StreamError: truncated, over a limit, or a RAMBlock table that no guest can have.
        """
        (instance, measure, public, policy, cbit, channels, vcpus, blocks, excluded, mailbox) = reader.unpack(_FACTS)
        if not 1 <= channels <= MAX_CHANNELS:
            raise StreamError(f"a handshake asks for {channels} channels; 1 to {MAX_CHANNELS} are possible")
        if blocks > MAX_BLOCKS or excluded > MAX_EXCLUDED:
            raise StreamError(f"a handshake lists {blocks} RAMBlocks and {excluded} excluded pages, over the limit")
        layout = _read_layout(reader, blocks)
        pages = tuple(reader.unpack(_PAGE)[0] for _ in range(excluded))
        return cls(instance, measure, public, policy, cbit, channels, vcpus, Gpa(mailbox), layout, pages)


def _read_layout(reader: _Reader, blocks: int) -> RamLayout:
    found = []
    try:
        for _ in range(blocks):
            gpa, size, length = reader.unpack(_BLOCK)
            found.append(RamBlock(reader.take(length).decode(), Gpa(gpa), size))
        return RamLayout(tuple(found))
    except (UserError, UnicodeDecodeError) as error:
        raise StreamError("a handshake's RAMBlock table makes no sense") from error


@dataclass(frozen=True, slots=True)
class Hello:
    """An OFFER, an ANSWER without its HMAC, or a SNAPSHOT, whose `migration` is the snapshot's id."""

    kind: MessageKind
    migration: bytes
    party: Party

    def encode(self) -> bytes:
        """The bytes that enter the transcript."""
        return _HEADER.pack(MAGIC, VERSION, self.kind, self.migration) + self.party.encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """An ANSWER as received: its claims, the bytes that enter the transcript, its HMAC."""

    hello: Hello
    body: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Confirm:
    """The source's last word."""

    migration: bytes
    mac: bytes

    def encode(self) -> bytes:
        """The whole message."""
        return _HEADER.pack(MAGIC, VERSION, MessageKind.CONFIRM, self.migration) + self.mac


def decode_offer(data: bytes) -> Hello:
    """Parse an OFFER.

    Raises:
        StreamError: it is none, or does not parse.
    """
    reader, migration = _opened(data, MessageKind.OFFER)
    party = Party.read(reader)
    reader.finish()
    return Hello(MessageKind.OFFER, migration, party)


def decode_answer(data: bytes) -> Answer:
    """Parse an ANSWER.

    Raises:
        StreamError: it is none, or does not parse.
    """
    reader, migration = _opened(data, MessageKind.ANSWER)
    party = Party.read(reader)
    mac = reader.take(MAC_SIZE)
    reader.finish()
    return Answer(Hello(MessageKind.ANSWER, migration, party), data[:-MAC_SIZE], mac)


def decode_confirm(data: bytes) -> Confirm:
    """Parse a CONFIRM.

    Raises:
        StreamError: it is none, or does not parse.
    """
    reader, migration = _opened(data, MessageKind.CONFIRM)
    mac = reader.take(MAC_SIZE)
    reader.finish()
    return Confirm(migration, mac)


def decode_snapshot(data: bytes) -> Hello:
    """Parse a SNAPSHOT.

    Raises:
        StreamError: it is none, or does not parse.
    """
    reader, snapshot = _opened(data, MessageKind.SNAPSHOT)
    party = Party.read(reader)
    reader.finish()
    if party.public != NO_PUBLIC:
        raise StreamError("a snapshot's header holds a public key")
    return Hello(MessageKind.SNAPSHOT, snapshot, party)


def transcript(offer: bytes, answer_body: bytes) -> bytes:
    """SHA-256 over both messages and their lengths, 32 bytes."""
    digest = hashlib.sha256()
    for message in (offer, answer_body):
        digest.update(_LENGTH.pack(len(message)) + message)
    return digest.digest()


def _opened(data: bytes, kind: MessageKind) -> tuple[_Reader, bytes]:
    if len(data) > MAX_MESSAGE:
        raise StreamError(f"a handshake message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    reader = _Reader(data)
    magic, version, found, migration = reader.unpack(_HEADER)
    if magic != MAGIC:
        raise StreamError("a handshake message does not start with its magic")
    if version != VERSION:
        raise StreamError(f"a handshake message has version {version}; this handler speaks {VERSION}")
    if found != kind:
        raise StreamError(f"a handshake message of kind {found} came where {kind.name} was due")
    return reader, migration
