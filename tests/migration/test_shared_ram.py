"""Shared pages arrive as they were, whatever they hold and wherever they lie."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SHIFT, PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import StreamError
from sealift.pageset import PageSet
from sealift.vmm.memory import SharedMemory
from sealift.vmm.migration.shared_ram import RamEncoder, RamLoader, SharedLog, populated
from sealift.vmm.migration.streamio import StreamReader
from sealift.wire.qemu_stream import END_OF_RAM_PART

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 600 << PAGE_SHIFT), RamBlock("high", Gpa(1 << 32), 40 << PAGE_SHIFT)))


@contextmanager
def memory() -> Iterator[SharedMemory]:
    fd = os.memfd_create("test-shared")
    os.ftruncate(fd, LAYOUT.size)
    found = SharedMemory(fd, LAYOUT)
    try:
        yield found
    finally:
        found.mapping.close()


def send(data: bytes, loader: RamLoader, parts: int) -> None:
    """Feed a loader through a socket, as many parts as there are."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def feed() -> None:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=feed)
        sender.start()
        reader = StreamReader(ours)
        try:
            for _ in range(parts):
                loader.load(reader)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            sender.join()
        assert reader.received == len(data)


def encoded(source: SharedMemory, pages: PageSet) -> tuple[bytes, int, int, int]:
    """The wire, its parts, and what they count."""
    data, parts, content, zeros = b"", 0, 0, 0
    for batch in RamEncoder(source).batches(pages):
        data += b"".join(bytes(piece) for piece in batch.pieces)
        parts += 1
        content += batch.content_pages
        zeros += batch.zero_pages
    return data, parts, content, zeros


KINDS = ("hole", "zero", "first", "last", "full")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_page_arrives_and_no_other_changes(seed: int) -> None:
    """Zero pages overwrite what lay there, also a page whose only byte is its last one."""
    random = np.random.default_rng(seed)
    content = random.choice(KINDS, LAYOUT.pages).tolist()
    chosen = np.flatnonzero(random.random(LAYOUT.pages) < random.random()).astype(np.uint64)
    with memory() as source, memory() as target:
        for number, kind in enumerate(content):
            page = source.mapping.view[number << PAGE_SHIFT : (number + 1) << PAGE_SHIFT]
            match kind:
                case "zero":
                    page[:] = bytes(PAGE_SIZE)
                case "first":
                    page[0] = 1
                case "last":
                    page[PAGE_SIZE - 1] = 1
                case "full":
                    page[:] = number.to_bytes(2, "big") * (PAGE_SIZE // 2)
            page.release()
        target.mapping.view[: LAYOUT.size // 2] = b"\xaa" * (LAYOUT.size // 2)
        before = bytes(target.mapping.view)
        pages = PageSet.of(LAYOUT.pages, chosen)
        data, parts, full, zeros = encoded(source, pages)
        assert full + zeros == len(chosen)
        send(data, RamLoader(target), parts)
        for number in range(LAYOUT.pages):
            place = slice(number << PAGE_SHIFT, (number + 1) << PAGE_SHIFT)
            expected = bytes(source.mapping.view[place]) if number in pages else before[place]
            assert bytes(target.mapping.view[place]) == expected


def test_holes_take_no_memory_on_either_side() -> None:
    with memory() as source, memory() as target:
        source.mapping.view[5 << PAGE_SHIFT] = 1
        data, parts, full, zeros = encoded(source, PageSet.full(LAYOUT.pages))
        assert (full, zeros) == (1, LAYOUT.pages - 1)
        send(data, RamLoader(target), parts)
        assert list(populated(source).numbers()) == [5]
        assert list(populated(target).numbers()) == [5]


def header(value: int) -> bytes:
    return value.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(0x28) + bytes(4096), "without naming its RAMBlock"),
        (header(0x08) + b"\x05other" + bytes(4096), "pages of RAMBlock 'other'"),
        (header(0x08 | 600 << 12) + b"\x06pc.ram" + bytes(4096), "outside RAMBlock pc.ram"),
        (header(0x200) + b"\x06pc.ram", "unknown flags 0x200"),
        (header(0x02) + b"\x06pc.ram\x01", "not a zero page"),
        (header(0x02) + b"\x06pc.ram\x00" + header(0x62 | 1 << 12) + b"\0", "unknown flags 0x62"),
        (header(0x02) + b"\x06pc.ram\x00" + header(0x22 | 600 << 12) + b"\0", "outside RAMBlock pc.ram"),
    ],
)
def test_what_qemu_would_not_send_is_refused(data: bytes, reason: str) -> None:
    with memory() as target, pytest.raises(StreamError, match=reason):
        send(data + END_OF_RAM_PART, RamLoader(target), 1)


class FakeMachine:
    """The three sets a log is made from."""

    def __init__(self) -> None:
        self.layout = LAYOUT
        self.platform = self.memory = self
        self.dirty, self.written, self.shared = (PageSet(LAYOUT.pages) for _ in range(3))

    def shared_dirty(self) -> PageSet:
        """Move out what the guest wrote."""
        return self.dirty.take()

    def take_device_dirty(self) -> PageSet:
        """Move out what devices wrote."""
        return self.written.take()

    def shared_pages_now(self) -> PageSet:
        """A copy."""
        return self.shared.copy()


def test_a_page_whose_mark_came_before_the_news_that_it_is_shared_is_not_lost() -> None:
    """The platform marks at once; the VMM learns of the new state with the vCPU's exit, maybe a round later."""
    machine = FakeMachine()
    log = SharedLog(machine, PageSet(LAYOUT.pages))  # type: ignore[arg-type]  # all a log needs of a machine
    machine.dirty.mark(7)
    assert not log.take()
    machine.shared.mark(7)
    assert log.count() == 1
    assert list(log.take().numbers()) == [7]
    assert not log.take()


def test_what_a_device_wrote_is_sent_again() -> None:
    machine = FakeMachine()
    machine.shared.add_range(10, 5)
    log = SharedLog(machine, PageSet(LAYOUT.pages))  # type: ignore[arg-type]  # as above
    log.take()
    machine.written.mark(12)
    machine.dirty.mark(13)
    assert list(log.take().numbers()) == [12, 13]
    assert not log.take()


def test_a_devices_write_is_in_the_set_once_and_in_the_memory_first() -> None:
    """Across the end of a page, and in a block that starts where the memory file goes on."""
    with memory() as found:
        found.write((1 << 32) + 2 * PAGE_SIZE - 1, b"ab")
        found.write(5 * PAGE_SIZE, b"c")
        assert found.read((1 << 32) + 2 * PAGE_SIZE - 1, 2) == b"ab"
        assert list(found.take_device_dirty().numbers()) == [5, 601, 602]
        found.place(0, b"launch image")
        assert not found.take_device_dirty()


def test_the_mailbox_never_travels_and_the_first_round_has_every_other_shared_page() -> None:
    machine = FakeMachine()
    machine.shared.add_range(10, 5)
    mailbox = PageSet(LAYOUT.pages)
    mailbox.add_range(12, 2)
    log = SharedLog(machine, mailbox)  # type: ignore[arg-type]  # as above
    machine.dirty.mark(12)
    assert list(log.take().numbers()) == [10, 11, 14]
