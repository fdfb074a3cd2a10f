"""Decoding msgpack that comes from elsewhere: whatever is wrong with it is a StreamError."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from sealift.errors import StreamError

T = TypeVar("T")

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that do not fit: besides its own errors, for text that is no UTF-8 and deep nesting."""


def unpack(data: bytes | memoryview, kind: type[T], what: str) -> T:
    """Decode one value of type `kind`.

    Raises:
        StreamError: `what` does not parse.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except UNDECODABLE as error:
        raise StreamError(f"{what} does not parse") from error
