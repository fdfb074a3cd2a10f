"""Sealed records: what carries a guest's private memory and state from one migration handler to the other.

::

    0          56             56 + 8 count                    - 16      end
    ├─ header ─┼─ page numbers ─┼─ ciphertext (length bytes) ─┼─ tag ─┤
    └──── associated data ──────┘                             AES-256-GCM

Everything is little-endian. The nonce is channel ‖ sequence number, under a key that serves one direction of one
leg of one migration, so no nonce comes twice. The VMM reads headers, to know lengths and rounds; it can make none.

What a record may be, by kind:

======  ==========================  ============================================================
PAGES   1..MAX_PAGES page numbers   content of the first length / 4096 of them; the others are zero pages
EPOCH   no page numbers             nothing: closes a round (epoch) on its channel
STATE   no page numbers             total u64, offset u64, then a piece of the handler's state
CLOSE   no page numbers             for every channel: records u64, SHA-256 over their tags
======  ==========================  ============================================================

A receiver takes version `VERSION` and nothing else.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from sealift.address import PAGE_SIZE
from sealift.errors import StreamError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes."""

MAGIC = b"SLRC"
VERSION = 1

TAG_SIZE = 16
"""An AES-GCM tag in full."""

MAX_CHANNELS = 16
"""More streams than this only fight for the same cores; both sides keep a buffer for each."""

MAX_PAGES = 512
"""Pages in one record (2 MiB): enough to make the fixed cost vanish, and bounds each private copy."""

MAX_PAYLOAD = MAX_PAGES * PAGE_SIZE
"""Plaintext bytes of one record."""

MAX_SEQUENCE = (1 << 63) - 1
"""Sequence numbers never wrap: a channel that came this far must start a new migration."""

FIRST_LEG = 1
FIRST_EPOCH = 1

_HEADER = struct.Struct("<4sHHIIQQ16sII")
_NUMBER_SIZE = 8
_STATE = struct.Struct("<QQ")
_CHANNEL_END = struct.Struct("<Q32s")

HEADER_SIZE = _HEADER.size
STATE_HEADER_SIZE = _STATE.size
MAX_RECORD = HEADER_SIZE + MAX_PAGES * _NUMBER_SIZE + MAX_PAYLOAD + TAG_SIZE


class RecordKind(enum.IntEnum):
    """What a record carries; 0 is invalid."""

    PAGES = 1
    EPOCH = 2
    STATE = 3
    CLOSE = 4


class RecordHeader(msgspec.Struct, frozen=True):
    """The clear, authenticated front of a record.

    Attributes:
        migration: random id of the migration, 16 bytes.
        leg: `FIRST_LEG`, one more after every resume.
        epoch: the round it belongs to, from `FIRST_EPOCH`.
        sequence: place on its channel, from 0, without gaps.
        count: page numbers that follow.
        length: plaintext bytes (ciphertext without tag).
    """

    kind: RecordKind
    leg: int
    channel: int
    epoch: int
    sequence: int
    migration: bytes
    count: int
    length: int

    @property
    def name(self) -> str:
        """The record, in words."""
        return f"record {self.sequence} of channel {self.channel}"

    @property
    def body(self) -> int:
        """Byte offset of the ciphertext; what lies before is the associated data."""
        return HEADER_SIZE + self.count * _NUMBER_SIZE

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return self.body + self.length + TAG_SIZE

    def encode(self) -> bytes:
        """`HEADER_SIZE` bytes."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.leg,
            self.channel,
            self.epoch,
            self.sequence,
            self.migration,
            self.count,
            self.length,
        )

    @classmethod
    def decode(cls, data: Buffer) -> RecordHeader:
        """Parse the first `HEADER_SIZE` bytes of `data`; checks shape and limits, not authenticity.

        Raises:
            StreamError: truncated, not a record, another version, an unknown kind or a length over its limit.
        """
        if len(data) < HEADER_SIZE:
            raise StreamError(f"a record of {len(data)} bytes is truncated in its header")
        magic, version, kind, leg, channel, epoch, sequence, migration, count, length = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise StreamError("a record does not start with its magic")
        if version != VERSION:
            raise StreamError(f"a record has version {version}; this handler speaks {VERSION}")
        if kind not in RecordKind.__members__.values():
            raise StreamError(f"a record has the unknown kind {kind}")
        header = cls(RecordKind(kind), leg, channel, epoch, sequence, migration, count, length)
        header._check_shape()
        return header

    def _check_shape(self) -> None:
        if self.channel >= MAX_CHANNELS:
            raise StreamError(f"a record names channel {self.channel}; there are at most {MAX_CHANNELS}")
        match self.kind:
            case RecordKind.PAGES:
                fits = 1 <= self.count <= MAX_PAGES and self.length in range(0, (self.count + 1) * PAGE_SIZE, PAGE_SIZE)
            case RecordKind.EPOCH:
                fits = self.count == 0 and self.length == 0
            case RecordKind.STATE:
                fits = self.count == 0 and STATE_HEADER_SIZE < self.length <= MAX_PAYLOAD
            case RecordKind.CLOSE:
                fits = self.count == 0 and 0 < self.length <= MAX_CHANNELS * _CHANNEL_END.size
        if not fits:
            raise StreamError(f"a {self.kind.name} record cannot hold {self.count} pages in {self.length} bytes")


def page_record_size(pages: int) -> int:
    """Bytes of a PAGES record with `pages` pages."""
    return HEADER_SIZE + pages * (_NUMBER_SIZE + PAGE_SIZE) + TAG_SIZE


def pages_fitting(space: int) -> int:
    """How many pages a PAGES record of at most `space` bytes can hold; at most `MAX_PAGES`, 0 if none."""
    return max(0, min(MAX_PAGES, (space - HEADER_SIZE - TAG_SIZE) // (_NUMBER_SIZE + PAGE_SIZE)))


def state_fitting(space: int) -> int:
    """How many bytes of handler state a STATE record of at most `space` bytes can hold; 0 if none."""
    return max(0, min(MAX_PAYLOAD, space - HEADER_SIZE - TAG_SIZE) - STATE_HEADER_SIZE)


@dataclass(frozen=True, slots=True)
class StatePiece:
    """Plaintext of a STATE record: `data` belongs at byte `offset` of a state of `total` bytes."""

    total: int
    offset: int
    data: bytes

    def encode(self) -> bytes:
        """The record's plaintext."""
        return _STATE.pack(self.total, self.offset) + self.data

    @classmethod
    def decode(cls, plain: Buffer) -> StatePiece:
        """Parse the plaintext.

        Raises:
            StreamError: too short to say which piece it is.
        """
        if len(plain) < STATE_HEADER_SIZE:
            raise StreamError(f"a state record of {len(plain)} bytes is shorter than its header")
        total, offset = _STATE.unpack_from(plain)
        return cls(total, offset, bytes(plain[STATE_HEADER_SIZE:]))


@dataclass(frozen=True, slots=True)
class ChannelEnd:
    """How a channel ended: `records` before the close record, and the SHA-256 over their tags."""

    records: int
    digest: bytes


def encode_close(ends: tuple[ChannelEnd, ...]) -> bytes:
    """Plaintext of a CLOSE record: every channel, in order."""
    return b"".join(_CHANNEL_END.pack(end.records, end.digest) for end in ends)


def decode_close(plain: Buffer) -> tuple[ChannelEnd, ...]:
    """Parse `encode_close`.

    Raises:
        StreamError: not a whole number of entries.
    """
    if len(plain) % _CHANNEL_END.size:
        raise StreamError(f"a close record of {len(plain)} bytes is not a list of channels")
    return tuple(ChannelEnd(records, digest) for records, digest in _CHANNEL_END.iter_unpack(plain))
