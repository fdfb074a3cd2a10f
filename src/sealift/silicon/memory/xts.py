"""AES-128-XTS over many 4 KiB pages at once: the memory controller's inline encryption.

Each page is one data unit of 256 blocks; its tweak is its guest physical address (IEEE 1619: T_0 = E_K2(tweak),
T_j = T_0 * alpha^j). The tweaks of all pages come from one AES call and the blocks from another, so cost per page in
Python is nothing; results equal one XTS call a page (checked in the tests).
How silicon tweaks its cipher is not visible outside it: XTS with the address is the model's choice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sealift.address import PAGE_SIZE

KEY_BYTES = 32
"""Two AES-128 keys."""

_BLOCKS = PAGE_SIZE // 16
_CHUNK_PAGES = 256
"""Pages a pass works on: 1 MiB of tweaks beside 1 MiB of data stay in cache."""

_LONGEST_STEP = 32
"""Largest power of alpha multiplied by in one pass: what falls out, times 0x87, must still fit one word."""

Pages = npt.NDArray[np.uint64]
"""Page content as (pages, 512) 64-bit words."""


class PageCipher:
    """Encrypts and decrypts whole pages under one guest's memory key (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        # ECB is the raw block function that XTS is built from; the tweaks make every block different.
        self._data = Cipher(algorithms.AES(key[:16]), modes.ECB())  # noqa: S305  # building block of XTS
        self._tweak = Cipher(algorithms.AES(key[16:32]), modes.ECB())  # noqa: S305  # building block of XTS

    def encrypt(self, content: Pages, addresses: npt.NDArray[np.uint64]) -> Pages:
        """Ciphertext of pages at guest physical `addresses` (bytes); shapes (n, 512) and (n,)."""
        return self._apply(content, addresses, decrypt=False)

    def decrypt(self, content: Pages, addresses: npt.NDArray[np.uint64]) -> Pages:
        """The inverse of `encrypt`."""
        return self._apply(content, addresses, decrypt=True)

    def _apply(self, content: Pages, addresses: npt.NDArray[np.uint64], *, decrypt: bool) -> Pages:
        result = np.empty_like(content)
        for start in range(0, len(content), _CHUNK_PAGES):
            chunk = slice(start, start + _CHUNK_PAGES)
            tweaks = self._tweaks(addresses[chunk])
            mixed = np.ascontiguousarray(content[chunk] ^ tweaks)
            block = self._data.decryptor() if decrypt else self._data.encryptor()
            np.bitwise_xor(
                np.frombuffer(block.update(_bytes(mixed)), np.uint64).reshape(mixed.shape), tweaks, result[chunk]
            )
        return result

    def _tweaks(self, addresses: npt.NDArray[np.uint64]) -> Pages:
        seeds = np.zeros((len(addresses), 2), np.uint64)
        seeds[:, 0] = addresses
        first = np.frombuffer(self._tweak.encryptor().update(_bytes(seeds)), np.uint64).reshape(-1, 2)
        tweaks = np.empty((len(addresses), _BLOCKS, 2), np.uint64)
        tweaks[:, 0] = first
        done = 1
        while done < _BLOCKS:
            step = min(done, _LONGEST_STEP)
            tweaks[:, done : done + step] = _times_alpha(tweaks[:, done - step : done], step)
            done += step
        return tweaks.reshape(len(addresses), _BLOCKS * 2)


def _times_alpha(tweaks: Pages, power: int) -> Pages:
    """Tweaks times alpha^power in GF(2^128): a shift, and the bits that fall out folded back by 0x87."""
    low, high = tweaks[..., 0], tweaks[..., 1]
    shift, rest = np.uint64(power), np.uint64(64 - power)
    out = high >> rest
    folded = out ^ out << np.uint64(1) ^ out << np.uint64(2) ^ out << np.uint64(7)
    return np.stack((low << shift ^ folded, high << shift | low >> rest), axis=-1)


def _bytes(words: Pages) -> memoryview:
    return words.reshape(-1).view(np.uint8).data
