"""Connections beside a migration's stream: each carries the sealed records of one channel (capability multifd).

::

    source VMM                                                         target VMM
      │── magic, version, channel, ticket ──────────────────────────────►│ belongs to the HELLO with this ticket
      │══ be32 length, record ═══════════════════════════════════════════►│ … of channel 1 and on; 0 is in the stream
      │── be32 0: the channel ends here ─────────────────────────────────►│
      │◄───────────── REFUSED (`sealift.wire.handover`), only to strangers│

All integers are big-endian. The source connects after ANSWER; the ticket, 16 random bytes, was in its HELLO. It keeps
strangers from taking a place, but who can read the stream can read it: what protects records is their own seal.
A target holds each channel at its epoch token until all channels have brought theirs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sealift.errors import StreamError
from sealift.wire.record import MAX_CHANNELS, MAX_RECORD

MAGIC: Final = b"SLSC"
VERSION: Final = 1

TICKET_SIZE: Final = 16

_FRONT: Final = struct.Struct(f">4sHH{TICKET_SIZE}s")
_LENGTH: Final = struct.Struct(">I")

FRONT_SIZE: Final = _FRONT.size
LENGTH_SIZE: Final = _LENGTH.size

END: Final = _LENGTH.pack(0)
"""Behind the last record."""


@dataclass(frozen=True, slots=True)
class SideFront:
    """What a side connection begins with: its channel, and the ticket of the migration it belongs to."""

    channel: int
    ticket: bytes

    def encode(self) -> bytes:
        """Its `FRONT_SIZE` bytes."""
        return _FRONT.pack(MAGIC, VERSION, self.channel, self.ticket)

    @classmethod
    def decode(cls, data: bytes) -> SideFront:
        """Parse `encode`.

        Raises:
            StreamError: another length, no side connection, another version, or an impossible channel.
        """
        if len(data) != FRONT_SIZE:
            raise StreamError(f"a side connection begins with {FRONT_SIZE} bytes, not {len(data)}")
        magic, version, channel, ticket = _FRONT.unpack(data)
        if magic != MAGIC or version != VERSION:
            raise StreamError(f"a side connection has version {version}; this target takes {VERSION}")
        if not 1 <= channel < MAX_CHANNELS:
            raise StreamError(f"a side connection is of channel {channel}; 1 to {MAX_CHANNELS - 1} have one")
        return cls(channel, ticket)


def encode_length(length: int) -> bytes:
    """What lies before a record."""
    return _LENGTH.pack(length)


def decode_length(data: bytes) -> int:
    """Parse `encode_length`; 0 is the end.

    Raises:
        StreamError: longer than any record.
    """
    (length,) = _LENGTH.unpack(data)
    if length > MAX_RECORD:
        raise StreamError(f"a record of {length} bytes is over the limit of {MAX_RECORD}")
    return int(length)
