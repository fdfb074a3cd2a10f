"""The receipt of a migration: what both migration handlers state of it when the guest runs on the target.

::

    source handler   on taking STARTED   statement, MAC under a key derived from R of the launch that was left    ┐ one
    target handler   on making STARTED   statement, MAC under a key derived from R of the launch that received it ┘ file

Neither handler can check the other's half, and no VMM either: the guest's owner, who has both keys, can. Both halves
state the same facts, each counted inside its own boundary, so they confirm each other.

A statement is little-endian, `STATEMENT_SIZE` bytes::

    magic 4 │ version u16 │ side u16 │ migration id 16 │ instance id 16 │ LAUNCH_MEASURE output of the source 48 │
    of the target 48 │ records u64 │ pages u64 │ bytes u64 │ SHA-256 of all channels' ends 32 │ HMAC-SHA256 32

The channels' ends are the close record's plaintext (`record.encode_close`): for every channel the number of its records
and the SHA-256 over their tags, and so every sealed byte. As a file a receipt is JSON, one field a fact, with what the
VMM claims of its own beside: times, names, places. Nothing proves those.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from sealift.errors import StreamError

MAGIC: Final = b"SLRC"
VERSION: Final = 1

_BODY: Final = struct.Struct("<4sHH16s16s48s48sQQQ32s")
MAC_SIZE: Final = 32
STATEMENT_SIZE: Final = _BODY.size + MAC_SIZE

FILE_LIMIT: Final = 16 * 1024
"""Bytes of a receipt's file: two halves of some 700 characters, and the VMM's claims."""

_COUNT_LIMIT: Final = (1 << 63) - 1
"""Far beyond anything that moves, and the largest number that every reader of JSON here takes."""

_Hex16: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Hex48: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{96}\Z")]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=_COUNT_LIMIT)]
_Words: TypeAlias = Annotated[str, Meta(max_length=1024)]


class Side(enum.Enum):
    """Whose statement it is."""

    SOURCE = "source"
    TARGET = "target"


_SIDES: Final = {Side.SOURCE: 1, Side.TARGET: 2}
"""On the wire; 0 is invalid."""


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What one handler states, and its MAC.

    Attributes:
        side: whose it is.
        migration: the migration's id.
        guest: the guest's instance id.
        from_launch: LAUNCH_MEASURE output of the launch that the guest left.
        to_launch: that of the launch that received it.
        records: sealed records, without the close record.
        pages: private pages in them, each as often as it travelled.
        length: bytes of these records, as they were on the wire.
        tags: SHA-256 of all channels' ends.
        mac: HMAC-SHA256 over `body`.
    """

    side: Side
    migration: _Hex16
    guest: _Hex16
    from_launch: _Hex48
    to_launch: _Hex48
    records: _Count
    pages: _Count
    length: _Count = msgspec.field(name="bytes")
    tags: _Hex32
    mac: _Hex32

    def body(self) -> bytes:
        """What the MAC covers."""
        return _BODY.pack(
            MAGIC,
            VERSION,
            _SIDES[self.side],
            *(bytes.fromhex(value) for value in (self.migration, self.guest, self.from_launch, self.to_launch)),
            *(self.records, self.pages, self.length),
            bytes.fromhex(self.tags),
        )

    def encode(self) -> bytes:
        """The statement's bytes."""
        return self.body() + bytes.fromhex(self.mac)

    @classmethod
    def decode(cls, data: bytes) -> Statement:
        """Parse a statement; its MAC is for the owner to check.

        Raises:
            StreamError: wrong length, magic, version or side, or an absurd count.
        """
        if len(data) != STATEMENT_SIZE:
            raise StreamError(f"a receipt's statement is {STATEMENT_SIZE} bytes long, not {len(data)}")
        magic, version, side, *ids, records, pages, length, tags = _BODY.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise StreamError(f"a receipt's statement is none of version {VERSION}")
        sides = [each for each, number in _SIDES.items() if number == side]
        if not sides:
            raise StreamError(f"a receipt's statement is of the unknown side {side}")
        if max(records, pages, length) > _COUNT_LIMIT:
            raise StreamError("a receipt's statement counts more than can have moved")
        migration, guest, left, received = (value.hex() for value in ids)
        mac = data[_BODY.size :].hex()
        return cls(sides[0], migration, guest, left, received, records, pages, length, tags.hex(), mac)


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What the source's VMM says beside; times are its own, in ms and UTC."""

    name: _Words
    uri: _Words
    ended: _Words
    total_time: _Count
    downtime: _Count


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Both halves as far as they are there, and the VMM's claims if it made any."""

    source: Statement | None = None
    target: Statement | None = None
    claimed_by_the_vmm: Claims | None = None
    version: int = VERSION

    @classmethod
    def of(cls, source: bytes, target: bytes) -> Receipt | None:
        """What two handlers stated; None if neither did. An empty half, or one that does not parse, is missing."""
        receipt = cls(_parsed(source), _parsed(target))
        return None if receipt.source is receipt.target is None else receipt


def _parsed(data: bytes) -> Statement | None:
    try:
        return Statement.decode(data) if data else None
    except StreamError:
        return None  # the other VMM sent rubbish: there is no such half
