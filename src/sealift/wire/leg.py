"""A migration that goes on after its connections were lost: a new leg, agreed between the two migration handlers.

::

    source   leg request: its nonce, and the epoch that the leg begins with   ─► target
    target   ends the leg before, and destroys its keys
             leg answer: its nonce, and how many records of every channel it had accepted ─► source
    both     new keys for records, from the session's secret, the leg's number and both nonces

What the target accepted stays. The source marks unsent again what it had sealed and the target did not accept; a
request that gets no answer changes nothing there. Each message has an HMAC-SHA256 under a key that is derived from the
session's secret; the answer's covers the request too. Everything is little-endian::

    request   magic 4 │ version u16 │ zero u16 │ migration id 16 │ leg u32 │ epoch u32 │ nonce 32 │ HMAC 32
    answer    magic 4 │ version u16 │ channels u16 │ migration id 16 │ leg u32 │ before u32 │ nonce 32 │
              records accepted u64 for each channel │ HMAC 32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sealift.errors import StreamError
from sealift.wire.record import MAX_CHANNELS

VERSION: Final = 2
NONCE_SIZE: Final = 32
MAC_SIZE: Final = 32
MAX_LEG: Final = (1 << 32) - 1

_REQUEST_MAGIC: Final = b"SLLQ"
_ANSWER_MAGIC: Final = b"SLLA"
_BODY: Final = struct.Struct("<4sHH16sII32s")
_ACCEPTED: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class LegRequest:
    """The source's.

    Attributes:
        migration: its id, 16 bytes.
        leg: the new leg's number: higher than any that was asked for before.
        epoch: its first epoch, which is newer than any that either side knows.
        nonce: 32 random bytes.
    """

    migration: bytes
    leg: int
    epoch: int
    nonce: bytes

    def body(self) -> bytes:
        """The bytes before the HMAC."""
        return _BODY.pack(_REQUEST_MAGIC, VERSION, 0, self.migration, self.leg, self.epoch, self.nonce)


@dataclass(frozen=True, slots=True)
class LegAnswer:
    """The target's.

    Attributes:
        migration, leg: as in the request.
        nonce: 32 random bytes.
        before: the leg whose records it had opened last.
        accepted: of every channel, how many records of that leg it had opened.
    """

    migration: bytes
    leg: int
    nonce: bytes
    before: int
    accepted: tuple[int, ...]

    def body(self) -> bytes:
        """The bytes before the HMAC."""
        head = _BODY.pack(_ANSWER_MAGIC, VERSION, len(self.accepted), self.migration, self.leg, self.before, self.nonce)
        return head + b"".join(map(_ACCEPTED.pack, self.accepted))


def split_leg_request(data: bytes) -> tuple[LegRequest, bytes]:
    """Parse a request to its claims and its HMAC, which is for the target to check.

    Raises:
        StreamError: wrong length, magic or version, or something where zeros belong.
    """
    if len(data) != _BODY.size + MAC_SIZE:
        raise StreamError(f"a leg request is {_BODY.size + MAC_SIZE} bytes long, not {len(data)}")
    magic, version, zero, migration, leg, epoch, nonce = _BODY.unpack_from(data)
    if (magic, version, zero) != (_REQUEST_MAGIC, VERSION, 0):
        raise StreamError(f"this is no leg request of version {VERSION}")
    return LegRequest(migration, leg, epoch, nonce), data[_BODY.size :]


def split_leg_answer(data: bytes) -> tuple[LegAnswer, bytes]:
    """Parse an answer to its claims and its HMAC, which is for the source to check.

    Raises:
        StreamError: wrong length, magic or version.
    """
    if len(data) < _BODY.size:
        raise StreamError(f"a leg answer of {len(data)} bytes is truncated")
    magic, version, channels, migration, leg, before, nonce = _BODY.unpack_from(data)
    if (magic, version) != (_ANSWER_MAGIC, VERSION):
        raise StreamError(f"this is no leg answer of version {VERSION}")
    end = _BODY.size + channels * _ACCEPTED.size
    if not 0 < channels <= MAX_CHANNELS or len(data) != end + MAC_SIZE:
        raise StreamError(f"a leg answer of {len(data)} bytes cannot be about {channels} channels")
    accepted = tuple(records for (records,) in _ACCEPTED.iter_unpack(data[_BODY.size : end]))
    return LegAnswer(migration, leg, nonce, before, accepted), data[end:]
