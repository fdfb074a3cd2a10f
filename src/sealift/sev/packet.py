"""Transport packets: data under a session's keys, as LAUNCH_SECRET and SEND/RECEIVE_UPDATE carry it.

Header of 52 bytes, little-endian: flags u32, IV 16, MAC 32. The payload is AES-128-CTR under TEK, and::

    MAC = HMAC-SHA256(TIK, context || flags || iv || guest length || transport length || payload || extra)

`extra` is the 32-byte launch measurement for a secret and nothing for other packets
(AMD SEV API, "LAUNCH_SECRET" and "SEND_UPDATE_DATA").
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sealift.errors import StreamError
from sealift.sev import kdf
from sealift.sev.session import TransportKeys, ctr
from sealift.sev.status import Status, failure

HEADER_SIZE: Final = 52
BLOCK_SIZE: Final = 16
"""Payloads are a whole number of these."""
COMPRESSED: Final = 1
"""Flag bit 0; no firmware supports it."""
COMPRESSED_FLAG: Final = "the packet's flags say that it is compressed"
"""What is wrong with such a packet."""

_LAYOUT: Final = struct.Struct("<I16s32s")


class Context(IntEnum):
    """First byte under a packet's MAC: what kind of packet it is."""

    SECRET = 1
    DATA = 2
    VMSA = 3


@dataclass(frozen=True, slots=True)
class Header:
    """A packet's header."""

    flags: int
    iv: bytes
    mac: bytes

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read 52 bytes.

        Raises:
            StreamError: wrong length.
        """
        if len(data) != HEADER_SIZE:
            raise StreamError(f"a packet header has {HEADER_SIZE} bytes, not {len(data)}")
        return cls(*_LAYOUT.unpack(data))

    def encode(self) -> bytes:
        """The header's 52 bytes."""
        return _LAYOUT.pack(self.flags, self.iv, self.mac)


def seal(
    transport: TransportKeys, context: Context, plain: bytes | memoryview, extra: bytes = b""
) -> tuple[Header, bytes]:
    """Encrypt and authenticate `plain` (a whole number of blocks) under a fresh IV."""
    return seal_with(transport, context, plain, os.urandom(BLOCK_SIZE), extra)


def seal_with(
    transport: TransportKeys, context: Context, plain: bytes | memoryview, iv: bytes, extra: bytes = b""
) -> tuple[Header, bytes]:
    """`seal` with a given IV, for known answers; an IV must never repeat under one key."""
    payload = ctr(transport.tek, iv, plain)
    unsigned = Header(0, iv, b"")
    return Header(0, iv, _mac(transport, context, unsigned, payload, extra)), payload


def unseal(transport: TransportKeys, context: Context, header: Header, payload: bytes, extra: bytes = b"") -> bytes:
    """Check and decrypt a packet.

    Raises:
        FirmwareError: BAD_MEASUREMENT, or UNSUPPORTED for an authentic compressed packet.
    """
    if not hmac.compare_digest(_mac(transport, context, header, payload, extra), header.mac):
        raise failure(Status.BAD_MEASUREMENT, "the packet's MAC fails: other keys, other data or another measurement")
    if header.flags & COMPRESSED:
        raise failure(Status.UNSUPPORTED, COMPRESSED_FLAG)
    return ctr(transport.tek, header.iv, payload)


def stream_mac(transport: TransportKeys, digest: bytes) -> bytes:
    """MAC over the digest of what travels beside a session's packets, which their own MACs say nothing about."""
    return hmac.digest(kdf.stream_key(transport.tik), digest, "sha256")


def _mac(transport: TransportKeys, context: Context, header: Header, payload: bytes, extra: bytes) -> bytes:
    """The MAC; guest and transport length are equal, since nothing is compressed."""
    length = len(payload).to_bytes(4, "little")
    head = bytes((context,)) + header.flags.to_bytes(4, "little") + header.iv + length + length
    mac = hmac.new(transport.tik, head, "sha256")
    mac.update(payload)
    mac.update(extra)
    return mac.digest()
