"""Memory files: bulk access, holes, and rings that only the platform can write."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE
from sealift.errors import UserError
from sealift.pageset import PageSet, Span
from sealift.silicon.memory.plane import Plane
from sealift.silicon.process.ring import SLOT_SIZE, SLOTS, incoming_ring, outgoing_ring

PAGES = 200
numbers = st.lists(st.integers(0, PAGES - 1), unique=True).map(lambda pages: np.array(pages, np.uint64))


def numbered() -> Plane:
    """Every page filled with its own number."""
    plane = Plane("test", PAGES * PAGE_SIZE)
    plane.words[:] = np.arange(PAGES, dtype=np.uint64)[:, np.newaxis]
    return plane


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@settings(max_examples=40, deadline=None)
@given(wanted=numbers)
def test_gather_copies_pages_in_the_order_asked(wanted: np.ndarray) -> None:
    out = bytearray(len(wanted) * PAGE_SIZE)
    numbered().gather(wanted, memoryview(out))
    assert np.array_equal(np.frombuffer(out, np.uint64).reshape(-1, 512)[:, 7], wanted)


@settings(max_examples=40, deadline=None)
@given(wanted=numbers)
def test_scatter_writes_those_pages_and_no_other(wanted: np.ndarray) -> None:
    plane = numbered()
    data = np.repeat(wanted + np.uint64(1000), 512).tobytes()
    plane.scatter(wanted, memoryview(data))
    expected = np.arange(PAGES, dtype=np.uint64)
    expected[wanted] += np.uint64(1000)
    assert np.array_equal(plane.words, np.repeat(expected, 512).reshape(PAGES, 512))


@settings(max_examples=40, deadline=None)
@given(wanted=numbers)
def test_populated_is_what_was_written_and_nothing_else(wanted: np.ndarray) -> None:
    plane = Plane("test", PAGES * PAGE_SIZE)
    for page in wanted:
        plane.window(int(page), 1)[5] = 1
    assert plane.populated() == PageSet.of(PAGES, wanted)


def test_populated_looks_only_where_it_was_asked_to() -> None:
    plane = Plane("test", PAGES * PAGE_SIZE)
    for page in (3, 4, 5, 90, 199):
        plane.window(page, 1)[0] = 1
    assert plane.populated(Span(0, 1)).numbers().tolist() == [3, 4, 5]
    assert plane.populated(Span(1, 2)).numbers().tolist() == [90 - 64], "numbered from the span's first page"
    assert plane.populated(Span(2, 3)).numbers().tolist() == []
    assert plane.populated(Span(2, 4)).numbers().tolist() == [199 - 128]


def test_a_punched_page_reads_as_zeros_and_is_a_hole_again() -> None:
    plane = numbered()
    punched = PageSet.of(PAGES, np.array([0, 7, 8, 9, 199], np.uint64))
    plane.punch(punched)
    assert not plane.words[punched.numbers()].any()
    expected = PageSet.full(PAGES)
    expected -= punched
    # Reading mapped holes above filled them with pages of zeros: look at a plane that nobody read.
    other = numbered()
    other.punch(punched)
    assert other.populated() == expected


def test_a_plane_can_neither_shrink_nor_grow_under_its_mapping() -> None:
    plane = Plane("test", 4 * PAGE_SIZE)
    for size in (0, 3 * PAGE_SIZE, 5 * PAGE_SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(plane.fd, size)


def test_what_cannot_be_mapped_is_the_users_error_and_leaves_no_descriptor() -> None:
    before = open_descriptors()
    with pytest.raises(UserError, match="cannot map"):
        Plane("test", 1 << 55)
    assert open_descriptors() == before


_OTHER_PROCESS = """
import mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
reader = mmap.mmap(fd, size, prot=mmap.PROT_READ)
print(reader[:6].decode())
for attempt in (
    lambda: mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: os.pwrite(fd, b"forged", 0),
    lambda: mmap.mmap(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), size),
    lambda: os.truncate(f"/proc/self/fd/{fd}", 0),
):
    try:
        attempt()
        print("written")
    except PermissionError:
        print("refused")
"""


def other_process(fd: int) -> list[str]:
    """What another process reads from a memfd, and how its attempts to write end."""
    command = [sys.executable, "-c", _OTHER_PROCESS, str(fd), str(SLOTS * SLOT_SIZE)]
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def test_only_the_platform_can_ever_write_an_outgoing_ring() -> None:
    """The other process reads what the platform writes, and every way to write fails."""
    ring = outgoing_ring()
    ring.slot(0)[:6] = b"record"
    assert other_process(ring.plane.fd) == ["record", *["refused"] * 4]
    with pytest.raises(PermissionError):
        mmap.mmap(ring.plane.fd, SLOTS * SLOT_SIZE)
    ring.slot(0)[:6] = b"second"
    assert other_process(ring.plane.fd)[0] == "second"


def test_an_incoming_ring_is_for_the_other_process_to_write() -> None:
    """The control of the test above: without the seal the same attempts succeed (but not to truncate)."""
    ring = incoming_ring()
    ring.slot(0)[:6] = b"record"
    assert other_process(ring.plane.fd) == ["record", "written", "written", "written", "refused"]
    assert bytes(ring.slot(0)[:6]) == b"forged"
