"""The memory cipher against an independent XTS, page by page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE
from sealift.silicon.memory.xts import PageCipher

KEY = bytes(range(32))
WORDS = PAGE_SIZE // 8


def one_call_a_page(key: bytes, content: npt.NDArray[np.uint64], addresses: npt.NDArray[np.uint64]) -> bytes:
    pages = []
    for page, address in zip(content, addresses, strict=True):
        tweak = int(address).to_bytes(16, "little")
        encryptor = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor()
        pages.append(encryptor.update(page.tobytes()) + encryptor.finalize())
    return b"".join(pages)


# Around one chunk of 256 pages, and several.
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 31, 255, 256, 257, 700])
def test_many_pages_at_once_equal_one_xts_call_a_page(pages: int) -> None:
    random = np.random.default_rng(pages)
    content = random.integers(0, 1 << 64, (pages, WORDS), np.uint64)
    addresses = random.integers(0, 1 << 47, pages, np.uint64) & ~np.uint64(PAGE_SIZE - 1)
    cipher = PageCipher(KEY)
    sealed = cipher.encrypt(content, addresses)
    assert sealed.tobytes() == one_call_a_page(KEY, content, addresses)
    assert np.array_equal(cipher.decrypt(sealed, addresses), content)


@settings(max_examples=60, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32).filter(lambda key: key[:16] != key[16:]),
    seed=st.integers(0, 2**32 - 1),
    addresses=st.lists(st.integers(0, (1 << 52) - 1).map(lambda pfn: pfn << 12), max_size=5),
)
def test_any_key_and_addresses(key: bytes, seed: int, addresses: list[int]) -> None:
    where = np.array(addresses, np.uint64)
    content = np.random.default_rng(seed).integers(0, 1 << 64, (len(where), WORDS), np.uint64)
    sealed = PageCipher(key).encrypt(content, where)
    assert sealed.tobytes() == one_call_a_page(key, content, where)


def test_equal_pages_differ_by_address_and_by_key() -> None:
    content = np.zeros((2, WORDS), np.uint64)
    addresses = np.array([0x1000, 0x2000], np.uint64)
    first, second = PageCipher(KEY).encrypt(content, addresses)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, PageCipher(KEY[::-1]).encrypt(content, addresses)[0])
    # No block repeats inside a page either.
    assert len({first.tobytes()[at : at + 16] for at in range(0, PAGE_SIZE, 16)}) == PAGE_SIZE // 16


def test_the_input_is_left_alone() -> None:
    content = np.arange(WORDS, dtype=np.uint64).reshape(1, WORDS)
    PageCipher(KEY).encrypt(content, np.array([0], np.uint64))
    assert np.array_equal(content[0], np.arange(WORDS))
