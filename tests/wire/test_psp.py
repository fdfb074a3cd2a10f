"""What method psp puts into a stream: read back as written, and nothing but declared errors for anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.pageset import PageSet
from sealift.sev import certificate, session
from sealift.wire import psp
from sealift.wire.psp import Answer, Confirm, Offer, PacketParts, RecordFront, RecordKind, VmRecord, Word

PAGES = 200_000
NONCE = bytes(range(16))


@pytest.mark.parametrize("kind", RecordKind)
def test_the_front_of_a_record_is_read_back(kind: RecordKind) -> None:
    front = RecordFront(kind, (1 << 64) - 1)
    assert RecordFront.decode(front.encode() + b"content") == front
    assert len(front.encode()) == psp.RECORD_FRONT


def test_a_record_of_kind_zero_is_none() -> None:
    with pytest.raises(StreamError, match="unknown kind 0"):
        RecordFront.decode(bytes(9))


@given(st.sets(st.integers(0, PAGES - 1), max_size=50), st.booleans())
def test_shared_regions_are_read_back(numbers: set[int], everything: bool) -> None:  # noqa: FBT001  # hypothesis gives it
    pages = PageSet.of(PAGES, np.array(sorted(numbers), np.uint64))
    if everything:
        pages.add_range(0, PAGES)
    found = PageSet(PAGES)
    for part in psp.encode_regions(pages):
        psp.add_regions(found, part)
    assert found == pages


def test_many_regions_take_several_records() -> None:
    pages = PageSet.of(PAGES, np.arange(0, PAGES, 2, dtype=np.uint64))
    parts = psp.encode_regions(pages)
    assert len(parts) == -(-PAGES // 2 // psp.REGIONS_IN_RECORD)


@pytest.mark.parametrize(("first", "count"), [(PAGES, 1), (0, PAGES + 1), ((1 << 64) - 1, 1), (1, (1 << 64) - 1)])
def test_regions_beyond_ram_are_refused(first: int, count: int) -> None:
    with pytest.raises(StreamError, match="are not among"):
        psp.add_regions(PageSet(PAGES), first.to_bytes(8, "big") + count.to_bytes(8, "big"))


@pytest.mark.parametrize("word", Word)
def test_a_word_is_of_its_migration_and_of_no_other(word: Word) -> None:
    said = word.encode(NONCE)
    word.expect(said, NONCE)
    assert len(said) == psp.WORD_SIZE
    for wrong in (said[:-1], said + b"x", word.encode(bytes(16)), b"", *(w.encode(NONCE) for w in Word if w != word)):
        with pytest.raises(StreamError, match=f"this is not the {word.name}"):
            word.expect(wrong, NONCE)


def test_the_exchange_is_read_back() -> None:
    confirm = Confirm(1, bytes(certificate.SIZE), bytes(session.SIZE))
    answer, offer, vm = Answer(b"pdh", b"certs", b"ca"), Offer(33), VmRecord("kvm", b"state")
    assert Confirm.decode(confirm.encode()) == confirm
    assert Answer.decode(answer.encode()) == answer
    assert Offer.decode(offer.encode()) == offer
    assert VmRecord.decode(vm.encode()) == vm


@pytest.mark.parametrize(("pdh", "blob"), [(0, session.SIZE), (certificate.SIZE, 0), (certificate.SIZE, 129)])
def test_a_confirmation_of_impossible_length_is_refused(pdh: int, blob: int) -> None:
    with pytest.raises(StreamError, match="impossible length"):
        Confirm.decode(Confirm(1, bytes(pdh), bytes(blob)).encode())


READERS: list[Callable[[bytes], object]] = [
    Offer.decode,
    Answer.decode,
    Confirm.decode,
    VmRecord.decode,
    RecordFront.decode,
    PacketParts.decode,
    lambda data: psp.add_regions(PageSet(PAGES), data),
]


@given(st.sampled_from(READERS), st.binary(max_size=200))
def test_nothing_but_declared_errors_comes_out(read: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(StreamError):
        read(data)
