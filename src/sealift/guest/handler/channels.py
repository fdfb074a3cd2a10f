"""The two ends of one channel: an ordered, gapless stream of sealed records.

The nonce is channel ‖ sequence number, so it never comes twice under one key. A sequence number is spent before
AES-GCM runs: should that fail, the number is lost and the target refuses the gap, but nothing is sealed twice.
Both ends keep the SHA-256 over all tags, which the close record compares. Whoever uses an end holds its lock.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealift.address import PAGE_SIZE
from sealift.errors import SealError, UserError
from sealift.guest.handler.exchange import Session
from sealift.pageset import PageNumbers
from sealift.wire.record import (
    FIRST_EPOCH,
    MAX_PAGES,
    MAX_SEQUENCE,
    TAG_SIZE,
    Buffer,
    ChannelEnd,
    RecordHeader,
    RecordKind,
    encode_close,
)

NO_PAGES: PageNumbers = np.empty(0, np.uint64)

_NONCE = struct.Struct("<IQ")
"""Channel and sequence number, 12 bytes."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one request gave.

    Attributes:
        length: bytes of the record; 0 when there was nothing to seal.
        pages: pages in it.
        remaining: pages left in the round, or bytes left of the state.
    """

    length: int
    pages: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What went over all channels up to a moment: their ends, pages each as often as it travelled, bytes of records."""

    ends: tuple[ChannelEnd, ...]
    pages: int
    length: int

    @classmethod
    def over(cls, channels: Sequence[SealingChannel] | Sequence[OpeningChannel]) -> Carried:
        """Over these channels up to now."""
        pages, length = (sum(getattr(each, name) for each in channels) for name in ("pages", "length"))
        return cls(tuple(each.end() for each in channels), pages, length)

    @property
    def records(self) -> int:
        """How many."""
        return sum(end.records for end in self.ends)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the ends, as the close record holds them."""
        return hashlib.sha256(encode_close(self.ends)).digest()


class SealingChannel:
    """One ordered stream of records.

    Attributes:
        number: the channel's.
        sequence: of the next record.
        pages: sealed so far.
        length: bytes of the records so far.
    """

    def __init__(self, number: int, session: Session, ended_epoch: int = FIRST_EPOCH - 1) -> None:
        self.lock = threading.Lock()
        self.number = number
        self._migration = session.migration
        self._leg = session.leg
        self._cipher = AESGCM(session.keys.records_forward)
        self.sequence = 0
        self._tags = hashlib.sha256()
        self._staging: bytearray | None = None
        self.pages = self.length = 0
        self.last_request = 0
        self.epoch_token = b""
        self.ended_epoch = ended_epoch

    def seal(self, kind: RecordKind, epoch: int, numbers: PageNumbers, plain: Buffer, out: memoryview) -> int:
        """Seal one record to the front of `out`; its length. The caller holds the lock and saw to the room."""
        if self.sequence > MAX_SEQUENCE:
            raise UserError(f"channel {self.number} has spent all sequence numbers; cancel and offer anew")
        header = RecordHeader(
            kind, self._leg, self.number, epoch, self.sequence, self._migration, numbers.size, len(plain)
        )
        nonce = _NONCE.pack(self.number, self.sequence)
        self.sequence += 1
        associated = header.encode() + numbers.astype("<u8", copy=False).tobytes()
        out[: header.body] = associated
        self._cipher.encrypt_into(nonce, plain, associated, out[header.body : header.size])
        self._tags.update(out[header.size - TAG_SIZE : header.size])
        self.pages += header.count
        self.length += header.size
        return header.size

    def seal_bytes(self, kind: RecordKind, epoch: int, plain: bytes) -> bytes:
        """Seal one record without pages to fresh memory."""
        out = bytearray(RecordHeader(kind, 0, 0, 0, 0, self._migration, 0, len(plain)).size)
        self.seal(kind, epoch, NO_PAGES, plain, memoryview(out))
        return bytes(out)

    def end(self) -> ChannelEnd:
        """How the channel stands."""
        return ChannelEnd(self.sequence, self._tags.digest())

    def staging(self, length: int) -> memoryview:
        """`length` bytes of private memory, the same at every call."""
        if self._staging is None:
            self._staging = bytearray(MAX_PAGES * PAGE_SIZE)
        return memoryview(self._staging)[:length]


class OpeningChannel:
    """The target's end.

    Attributes:
        sequence: the sequence number that is due.
        epoch: the epoch whose token is due.
        pages: opened so far.
        length: bytes of the records so far.
    """

    def __init__(self, session: Session, epoch: int) -> None:
        self.lock = threading.Lock()
        self._cipher = AESGCM(session.keys.records_forward)
        self._tags = hashlib.sha256()
        self.sequence = 0
        self.epoch = epoch
        self.pages = self.length = 0

    def unseal(self, header: RecordHeader, record: memoryview, plain: memoryview) -> None:
        """Decrypt a record in private memory to `plain` (`header.length` bytes); its sequence number was checked.

        Raises:
            SealError: it is not authentic; `plain` may have been written.
        """
        nonce = _NONCE.pack(header.channel, header.sequence)
        try:
            self._cipher.decrypt_into(nonce, record[header.body :], record[: header.body], plain)
        except InvalidTag as error:
            raise SealError(f"{header.name} is not authentic") from error
        self._tags.update(record[-TAG_SIZE:])
        self.sequence += 1
        self.pages += header.count
        self.length += header.size

    def end(self) -> ChannelEnd:
        """How the channel stands."""
        return ChannelEnd(self.sequence, self._tags.digest())
