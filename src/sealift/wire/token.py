"""Commit tokens: the short messages that make a guest run in exactly one place.

::

    source                                             target
    CLOSED   ── close record ────────────────────────► verifies everything, punches holes, loads state
             ◄──────────────────────────── PREPARED ── PREPARED
    FENCED   ── FINAL ───────────────────────────────► READY
             ◄───────── STARTED (source GONE), or ──── STARTED
             ◄───────── ABORTED (source unfenced) ──── ABORTED

Layout, little-endian, `TOKEN_SIZE` bytes::

    magic 4 │ version u16 │ kind u16 │ migration id 16 │ digest of the close record 32 │ HMAC-SHA256 32

The HMAC covers what lies before it, under the sender's token key. A token may travel as a file, be fetched again
and be delivered twice. An ABORTED of a target that never accepted a close record carries `NO_CLOSE`.

A fifth, SNAPSHOT, stands at the end of a snapshot in the place of FINAL: it speaks for all bytes before it, so its
digest is `whole_digest`. No migration takes it, and no snapshot takes any other.

A seventh, FILLED, is a target's that started its guest before all of it was there (post-copy): now all of it is, and
the source, SERVING until then, is GONE.

A sixth, RESUME, is the owner's word to a FENCED source whose target was lost (`sealift.wire.resume`). The owner does
not know the close record, so it carries `NO_CLOSE`.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass

from sealift.errors import StreamError

MAGIC = b"SLTK"
VERSION = 1

NO_CLOSE = bytes(32)
"""Stands for the digest where no close record was accepted."""

_BODY = struct.Struct("<4sHH16s32s")
MAC_SIZE = 32
TOKEN_SIZE = _BODY.size + MAC_SIZE


class TokenKind(enum.IntEnum):
    """What a token says; 0 is invalid."""

    PREPARED = 1
    FINAL = 2
    STARTED = 3
    ABORTED = 4
    SNAPSHOT = 5
    RESUME = 6
    FILLED = 7


@dataclass(frozen=True, slots=True)
class Token:
    """A token's claims; `body` is what the HMAC covers. `close_digest` is `whole_digest` in a SNAPSHOT."""

    kind: TokenKind
    migration: bytes
    close_digest: bytes

    def body(self) -> bytes:
        """The bytes before the HMAC."""
        return _BODY.pack(MAGIC, VERSION, self.kind, self.migration, self.close_digest)


def whole_digest(close_digest: bytes, stream_digest: bytes) -> bytes:
    """What a SNAPSHOT token speaks for: the close record, and every byte of the stream, by their SHA-256."""
    return hashlib.sha256(close_digest + stream_digest).digest()


def split_token(data: bytes) -> tuple[Token, bytes]:
    """Parse a token to its claims and its HMAC, which is not checked here.

    Raises:
        StreamError: wrong length, magic or version, or an unknown kind.
    """
    if len(data) != TOKEN_SIZE:
        raise StreamError(f"a token is {TOKEN_SIZE} bytes long, not {len(data)}")
    magic, version, kind, migration, digest = _BODY.unpack_from(data)
    if magic != MAGIC:
        raise StreamError("a token does not start with its magic")
    if version != VERSION:
        raise StreamError(f"a token has version {version}; this handler speaks {VERSION}")
    if kind not in TokenKind.__members__.values():
        raise StreamError(f"a token has the unknown kind {kind}")
    return Token(TokenKind(kind), migration, digest), data[_BODY.size :]
