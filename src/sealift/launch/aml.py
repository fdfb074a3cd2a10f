r"""A small encoder of AML: what it takes to describe devices that have only data, no methods.

Every function returns the encoding of one term; terms nest as they do in ASL::

    scope("\\_SB", device("COM1", name("_HID", eisa_id("PNP0501")), …))

Source: ACPI 6.5, chapters 6.4 (resource descriptors) and 20.2 (AML grammar).
"""

from __future__ import annotations

import struct
from typing import Final

_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_STRING_PREFIX: Final = b"\x0d"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_DEVICE_OP: Final = b"\x5b\x82"
_INTEGER_PREFIXES: Final = ((b"\x0a", 1), (b"\x0b", 2), (b"\x0c", 4), (b"\x0e", 8))

_SEGMENT: Final = 4
_SHORT_LENGTH: Final = 0x3F
"""A package length up to this takes one byte, which has 6 bits for it; the first of several bytes has 4."""

_IO_PORT: Final = struct.Struct("<BBHHBB")
_IRQ: Final = struct.Struct("<BH")
_MEMORY_32_FIXED: Final = struct.Struct("<BHBII")
_EXTENDED_INTERRUPT: Final = struct.Struct("<BHBBI")
_SMALL_IO, _SMALL_IRQ, _LARGE_MEMORY_32_FIXED, _LARGE_INTERRUPT = 0x47, 0x22, 0x86, 0x89
_DECODE_16: Final = 1
_READ_WRITE: Final = 1
_CONSUMER, _EDGE = 1 << 0, 1 << 1
_END_TAG: Final = b"\x79\x00"  # a checksum of 0 is not looked at


# --- terms ---------------------------------------------------------------------------------------------------------


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) {terms}``."""
    return _SCOPE_OP + _sized(_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) {terms}``."""
    return _DEVICE_OP + _sized(_path(path) + b"".join(terms))


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return _NAME_OP + _path(path) + value


def integer(value: int) -> bytes:
    """An integer of up to 64 bits."""
    if value in (0, 1):
        return (_ZERO_OP, _ONE_OP)[value]
    prefix, size = next((prefix, size) for prefix, size in _INTEGER_PREFIXES if value < 1 << 8 * size)
    return prefix + value.to_bytes(size, "little")


def string(text: str) -> bytes:
    """A string of ASCII characters."""
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def package(*elements: bytes) -> bytes:
    """``Package () {elements}``, up to 255 of them."""
    return _PACKAGE_OP + _sized(bytes([len(elements)]) + b"".join(elements))


def eisa_id(text: str) -> bytes:
    """``EisaId (text)``: three letters of 5 bits and four hexadecimal digits, as one big-endian number."""
    first, second, third = (ord(letter) - ord("@") for letter in text[:3])
    number = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return integer(int.from_bytes(number.to_bytes(4, "big"), "little"))


def resources(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () {descriptors}``."""
    content = b"".join(descriptors) + _END_TAG
    return _BUFFER_OP + _sized(integer(len(content)) + content)


# --- resource descriptors ------------------------------------------------------------------------------------------


def io_ports(port: int, count: int) -> bytes:
    """``IO (Decode16, …)``: `count` ports from `port`, which cannot be moved."""
    return _IO_PORT.pack(_SMALL_IO, _DECODE_16, port, port, 1, count)


def isa_interrupt(irq: int) -> bytes:
    """``IRQNoFlags () {irq}``: edge, active high."""
    return _IRQ.pack(_SMALL_IRQ, 1 << irq)


def memory(base: int, size: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, size)``."""
    return _MEMORY_32_FIXED.pack(_LARGE_MEMORY_32_FIXED, _MEMORY_32_FIXED.size - 3, _READ_WRITE, base, size)


def edge_interrupt(gsi: int) -> bytes:
    """``Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}``."""
    return _EXTENDED_INTERRUPT.pack(_LARGE_INTERRUPT, _EXTENDED_INTERRUPT.size - 3, _CONSUMER | _EDGE, 1, gsi)


# --- inside --------------------------------------------------------------------------------------------------------


def _path(path: str) -> bytes:
    """One name segment, of the root if it starts with a backslash; short ones are filled with underscores."""
    root, segment = ("\\", path[1:]) if path.startswith("\\") else ("", path)
    return f"{root}{segment:_<{_SEGMENT}}".encode("ascii")


def _sized(content: bytes) -> bytes:
    """Content behind its package length, which counts itself."""
    if len(content) + 1 <= _SHORT_LENGTH:
        return bytes([len(content) + 1]) + content
    for more in (1, 2, 3):
        total = len(content) + 1 + more
        if total < 1 << 4 + 8 * more:
            return bytes([more << 6 | total & 0xF]) + (total >> 4).to_bytes(more, "little") + content
    raise ValueError(f"{len(content)} bytes are more than an AML package can have")
