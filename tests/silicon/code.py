"""Machine code for engine tests, a few instructions at a time (AMD64 APM volume 3)."""

from __future__ import annotations

import struct

_NUMBERS = {
    name: number
    for number, name in enumerate(
        ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
    )
}
"""Registers as instructions encode them."""

HLT = b"\xf4"
VMMCALL = b"\x0f\x01\xd9"
CPUID = b"\x0f\xa2"
UD2 = b"\x0f\x0b"
LOCK = b"\xf0"
INC_AT_RBX = b"\x48\xff\x03"  # inc qword [rbx]
XADD_AT_RBX_RAX = b"\x48\x0f\xc1\x03"  # xadd [rbx], rax
INVLPG_RBX = b"\x0f\x01\x3b"  # invlpg [rbx]
RELOAD_CR3 = b"\x0f\x20\xd8\x0f\x22\xd8"  # mov rax, cr3; mov cr3, rax
RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"

_OUT = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}  # out dx, al/ax/eax
_IN = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}  # in al/ax/eax, dx


def mov(register: str, value: int) -> bytes:
    """A 64-bit constant into a register."""
    number = _NUMBERS[register]
    return bytes((0x48 | number >> 3, 0xB8 | number & 7)) + struct.pack("<Q", value & (1 << 64) - 1)


def load(target: str, base: str) -> bytes:
    """64 bits from the address in `base`."""
    return _at(0x8B, target, base)


def store(base: str, source: str) -> bytes:
    """64 bits to the address in `base`."""
    return _at(0x89, source, base)


def store_value(address: int, value: int) -> bytes:
    """A 64-bit constant to an address; uses r10 and r11."""
    return mov("r11", address) + mov("r10", value) + store("r11", "r10")


def inc(register: str) -> bytes:
    """Add one."""
    number = _NUMBERS[register]
    return bytes((0x48 | number >> 3, 0xFF, 0xC0 | number & 7))


def jump_to(register: str) -> bytes:
    """Go on at the address in a register below r8."""
    return bytes((0xFF, 0xE0 | _NUMBERS[register]))


def forever(body: bytes) -> bytes:
    """Again and again."""
    return body + b"\xe9" + struct.pack("<i", -(len(body) + 5))


def times(count: int, body: bytes) -> bytes:
    """So many times; uses rcx."""
    step = body + b"\x48\xff\xc9"  # dec rcx
    return mov("rcx", count) + step + b"\x0f\x85" + struct.pack("<i", -(len(step) + 6))  # jnz


def port_out(size: int) -> bytes:
    """To the port in dx, from al, ax or eax."""
    return _OUT[size]


def port_in(size: int) -> bytes:
    """From the port in dx, to al, ax or eax."""
    return _IN[size]


def _at(opcode: int, register: str, base: str) -> bytes:
    number, address = _NUMBERS[register], _NUMBERS[base]
    if address & 7 in (4, 5):
        raise ValueError(f"[{base}] needs another form of ModRM")
    return bytes((0x48 | number >> 3 << 2 | address >> 3, opcode, (number & 7) << 3 | address & 7))
