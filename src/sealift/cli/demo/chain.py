"""What a ledger guest must print: its hash chain, computed by who knows the secret.

The description is in the guest's sources (`content.h`, `ledger.c` in `sealift.guest.programs`); here it is numpy
over many updates at once. A guest that prints this chain has read and written every page as it should, all along.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]

_LEDGER_SEED: Final = 0x6C65_6467_6572_0000
_PAGE_WORDS: Final = 512
_STAMP_BYTES: Final = 512
_BATCH: Final = 4096
"""Updates computed at once: 32 KiB a step, which stays in the cache."""

_MULTIPLIER: Final = np.uint64(6364136223846793005)
_INCREMENT: Final = np.uint64(1442695040888963407)
_OF_PAGE: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_OF_GENERATION: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_CHECKSUM: Final = np.uint64(0x0000_0100_0000_01B3)
_HALF: Final = np.uint64(32)
_ENTRY: Final = struct.Struct("<32sIQQ")


class LedgerChain:
    """The chain of one vCPU; `working_set` in pages."""

    def __init__(self, vcpu: int, working_set: int, secret: bytes) -> None:
        self._seed = np.uint64(_LEDGER_SEED + vcpu)
        self._working_set = working_set
        padded = secret[:_STAMP_BYTES] + bytes(-len(secret[:_STAMP_BYTES]) % 8)
        self._stamp = np.frombuffer(padded, "<u8").astype(np.uint64)
        self._digests = [bytes(32)]

    def after(self, updates: int) -> str:
        """The chain after so many updates, in hex."""
        while len(self._digests) <= updates:
            self._extend(min(_BATCH, updates + 1 - len(self._digests)))
        return self._digests[updates].hex()

    def _extend(self, count: int) -> None:
        done = len(self._digests) - 1
        numbers = np.arange(done, done + count, dtype=np.uint64)
        pages, before = numbers % np.uint64(self._working_set), numbers // np.uint64(self._working_set)
        generations = before + np.uint64(1)
        checksums = self._checksums(pages, generations)
        chain = self._digests[-1]
        for page, generation, checksum in zip(pages.tolist(), generations.tolist(), checksums.tolist(), strict=True):
            chain = hashlib.sha256(_ENTRY.pack(chain, page, generation, checksum)).digest()
            self._digests.append(chain)

    def _checksums(self, pages: _Words, generations: _Words) -> _Words:
        """Of the pages' whole contents in these generations; arithmetic is modulo 2**64, as the guest's."""
        state = _step(np.full(pages.shape, self._seed)) ^ (pages * _OF_PAGE)
        state = _step(_step(state) ^ (generations * _OF_GENERATION))
        checksum = np.zeros(pages.shape, np.uint64)
        for index in range(_PAGE_WORDS):
            state = _step(state)
            word = self._stamp[index] if index < self._stamp.size else state ^ (state >> _HALF)
            checksum = (checksum ^ word) * _CHECKSUM
        return checksum


def _step(state: _Words) -> _Words:
    return state * _MULTIPLIER + _INCREMENT
