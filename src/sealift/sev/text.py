"""Binary files as people pass them on: raw, or as base64 text.

QEMU and libvirt take certificates, sessions and secrets as base64, AMD's tools as raw bytes. What a file holds has a
known size, so a file of that size is raw and any other one must be base64 text of it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Final

from sealift.errors import StreamError

_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def decode_base64(text: bytes) -> bytes | None:
    """The bytes that base64 text stands for, line breaks and blanks left out; None if it is no base64 text."""
    joined = b"".join(text.split())
    if not joined or not _BASE64.issuperset(joined):
        return None
    try:
        return base64.b64decode(joined, validate=True)
    except binascii.Error:
        return None


def raw_or_base64(data: bytes, sizes: Collection[int]) -> bytes:
    """The raw form of `data`, which has one of `sizes` bytes when it is raw.

    Raises:
        StreamError: neither raw nor base64 text of that many bytes.
    """
    if len(data) in sizes:
        return data
    expected = " or ".join(map(str, sorted(sizes)))
    decoded = decode_base64(data)
    if decoded is None:
        raise StreamError(f"{expected} bytes or base64 text of them are expected, not {len(data)} bytes")
    if len(decoded) not in sizes:
        raise StreamError(f"base64 text of {expected} bytes is expected, not of {len(decoded)}")
    return decoded
