"""Frames of gdb's remote serial protocol (GDB manual, appendix E.1): ``$data#checksum``, and a bare 0x03 for Ctrl-C."""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

import numpy as np

PACKET_LIMIT: Final = 1 << 17
"""Bytes of a packet's content, as large as gdb asks for: room for 64 KiB of memory in hexadecimal digits."""

_ESCAPE: Final = 0x7D
_SPECIAL: Final = re.compile(rb"[#$}*]")


class Signal(enum.Enum):
    """What comes outside of packets, or instead of one."""

    INTERRUPT = enum.auto()
    """Ctrl-C."""
    DAMAGED = enum.auto()
    """A packet whose checksum is wrong, or that is too long."""


Received: TypeAlias = bytes | Signal


def framed(content: bytes) -> bytes:
    """A packet of `content`, in which the bytes with a meaning of their own are escaped."""
    escaped = _SPECIAL.sub(lambda found: bytes((_ESCAPE, found[0][0] ^ 0x20)), content)
    return b"$%b#%02x" % (escaped, int(np.frombuffer(escaped, np.uint8).sum(dtype=np.uint64)) & 0xFF)


class Parser:
    """Finds packets in a stream of bytes, however it is cut; what lies between packets is passed over."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._overlong = False

    def feed(self, data: bytes) -> list[Received]:
        """What is complete with `data`, in order."""
        self._pending += data
        found: list[Received] = []
        while (next_one := self._next()) is not None:
            found.append(next_one)
        return found

    def _next(self) -> Received | None:
        if not self._overlong:
            start = next((at for at, byte in enumerate(self._pending) if byte in b"$\x03"), len(self._pending))
            del self._pending[:start]
            if self._pending[:1] == b"\x03":
                del self._pending[:1]
                return Signal.INTERRUPT
        end = self._pending.find(b"#")
        if end < 0 or len(self._pending) < end + 3:
            if len(self._pending) > PACKET_LIMIT:
                self._overlong = True
                self._pending.clear()
            return None
        body, checksum = bytes(self._pending[1:end]), bytes(self._pending[end + 1 : end + 3])
        overlong = self._overlong or end > PACKET_LIMIT
        self._overlong = False
        del self._pending[: end + 3]
        if overlong or not _matches(body, checksum):
            return Signal.DAMAGED
        return _unescaped(body)


def _matches(body: bytes, checksum: bytes) -> bool:
    try:
        return len(bytes.fromhex(checksum.decode("ascii"))) == 1 and int(checksum, 16) == sum(body) & 0xFF
    except ValueError:
        return False


def _unescaped(body: bytes) -> bytes:
    if _ESCAPE not in body:
        return body
    plain = bytearray()
    bytes_left = iter(body)
    for byte in bytes_left:
        plain.append(next(bytes_left, 0) ^ 0x20 if byte == _ESCAPE else byte)
    return bytes(plain)
