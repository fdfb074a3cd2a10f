"""The ledger's contents and chain, computed in Python from their description in content.h and ledger.c."""

from __future__ import annotations

import hashlib
import struct

MASK = (1 << 64) - 1
PAGE_WORDS = 512

LEDGER = 0x6C65_6467_6572_0000
PRIVATE = 0x7072_6976_6174_6500
SHARED = 0x7368_6172_6564_0000
KEPT = 0x6B65_7074_0000_0000


def _step(state: int) -> int:
    return (state * 6364136223846793005 + 1442695040888963407) & MASK


def words(kind: int, vcpu: int, page: int, generation: int, stamp: bytes = b"") -> list[int]:
    """What a page holds in a generation, as 64-bit words."""
    if generation == 0:
        return [0] * PAGE_WORDS
    state = _step(kind + vcpu) ^ (page * 0x9E37_79B9_7F4A_7C15 & MASK)
    state = _step(state) ^ (generation * 0xBF58_476D_1CE4_E5B9 & MASK)
    state = _step(state)
    made = []
    for _ in range(PAGE_WORDS):
        state = _step(state)
        made.append(state ^ state >> 32)
    stamp = stamp[:512] + bytes(-len(stamp[:512]) % 8)
    made[: len(stamp) // 8] = struct.unpack(f"<{len(stamp) // 8}Q", stamp)
    return made


def content(kind: int, vcpu: int, page: int, generation: int, stamp: bytes = b"") -> bytes:
    """The same as bytes."""
    return struct.pack(f"<{PAGE_WORDS}Q", *words(kind, vcpu, page, generation, stamp))


def chains(vcpu: int, updates: int, working_set: int, secret: bytes) -> list[str]:
    """The chain after 0, 1, 2, ... updates, in hex."""
    chain = bytes(32)
    made = [chain.hex()]
    for number in range(updates):
        page, generation = number % working_set, number // working_set + 1
        checksum = 0
        for word in words(LEDGER, vcpu, page, generation, secret):
            checksum = (checksum ^ word) * 0x100000001B3 & MASK
        chain = hashlib.sha256(chain + struct.pack("<IQQ", page, generation, checksum)).digest()
        made.append(chain.hex())
    return made
