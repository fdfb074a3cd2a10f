"""A snapshot as a file: the stream of a migration that nobody answers, and a line that ends it.

::

    QEMU stream (`sealift.wire.qemu_stream`): header, RAMBlocks, HELLO, rounds, devices, EOF, description
    line break, "sealift snapshot 1 ", SNAPSHOT token in hexadecimal, line break

The HELLO's offer holds a SNAPSHOT (`sealift.wire.handshake`) where a migration has its OFFER; no CONFIRM follows. The
token speaks for every byte before the line, those in clear included. The line is text since QEMU's analyser looks for
the description behind the last zero byte of a file.
"""

from __future__ import annotations

from sealift.errors import StreamError
from sealift.wire.token import TOKEN_SIZE

_FRONT = b"\nsealift snapshot 1 "
_BACK = b"\n"

END_SIZE = len(_FRONT) + 2 * TOKEN_SIZE + len(_BACK)
"""Bytes of the last line, with the line break before it."""


def encode_end(token: bytes) -> bytes:
    """The last line, `END_SIZE` bytes."""
    return _FRONT + token.hex().encode() + _BACK


def decode_end(line: bytes) -> bytes:
    """The token in the last line, which is not looked at here.

    Raises:
        StreamError: it is no such line, or of another version.
    """
    digits = line[len(_FRONT) : -len(_BACK)]
    try:
        token = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        token = b""
    if encode_end(token) != line or len(token) != TOKEN_SIZE:
        raise StreamError("the snapshot does not end as one of version 1 does: it is truncated, or no snapshot")
    return token
