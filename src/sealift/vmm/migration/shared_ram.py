"""Shared pages in the `ram` section: which are to be sent, and how they become bytes and pages again.

Shared pages are in clear by nature, so they go as any QEMU guest's pages. No Python runs for a single page: numpy
gathers a batch, tells zero pages apart, packs headers, and at the target recognises runs of entries of one kind.
Holes of the shared plane are sent as zeros without being touched: a look would make them take memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT, PAGE_SIZE, RamBlock
from sealift.errors import StreamError
from sealift.pageset import PageNumbers, PageSet, Words
from sealift.vmm.machine import Machine
from sealift.vmm.memory import Buffer, SharedMemory
from sealift.vmm.migration.streamio import ByteReader
from sealift.wire.qemu_stream import (
    END_OF_RAM_PART,
    FLAGS_MASK,
    PAGE_ENTRY,
    ZERO_ENTRY,
    RamFlag,
    encode_first,
    read_name,
)

BATCH_PAGES = 256
"""Pages gathered at once: 1 MiB, as the sealed records beside them."""

_HEADER_SIZE = 8
_GREED = 128 * 1024
"""Bytes a loader asks for at once: what a socket buffer holds."""


class SharedLog:
    """The shared pages that are still to be sent.

    A page may be marked dirty before the VMM learns that it is shared now; so marks are kept until it is.
    """

    def __init__(self, machine: Machine, excluded: PageSet) -> None:
        """Begin with every shared page; those `excluded` never travel."""
        self._machine = machine
        self._excluded = excluded
        self._pending = PageSet(machine.layout.pages)
        # Clear the log before looking at what is shared: whatever is written from here on is in the log again.
        self._collect()
        self._pending |= machine.shared_pages_now()

    def count(self) -> int:
        """Pages that another round would have now."""
        self._collect()
        return len(self._sendable())

    def take(self) -> PageSet:
        """Move out the pages to send now; their content must be read after this."""
        self._collect()
        pages = self._sendable()
        self._pending -= pages
        return pages

    def _collect(self) -> None:
        self._pending |= self._machine.platform.shared_dirty()
        self._pending |= self._machine.memory.take_device_dirty()

    def _sendable(self) -> PageSet:
        pages = self._machine.shared_pages_now()
        pages &= self._pending
        pages -= self._excluded
        return pages


@dataclass(frozen=True, slots=True)
class Batch:
    """The body of one part of the `ram` section, as pieces to be sent one behind the other."""

    pieces: tuple[Buffer, ...]
    content_pages: int
    zero_pages: int


class RamEncoder:
    """Makes parts of the `ram` section; a batch is valid until the next one is asked for.

    The first call is the first round, with every shared page, so holes have to be looked for; it must come after those
    pages were taken from the log. Later rounds have only pages that were written: what is written is no hole.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._touched: PageSet | None = None
        self._words = _words(memory)
        self._content = np.empty((BATCH_PAGES, PAGE_SIZE // 8), np.uint64)
        self._entries = np.empty(BATCH_PAGES, PAGE_ENTRY)

    def batches(self, pages: PageSet) -> Iterator[Batch]:
        """The parts that hold these pages."""
        if not pages:
            return
        if self._touched is None:
            self._touched = populated(self._memory)
        else:
            self._touched |= pages
        touched = self._touched
        numbers = pages.numbers()
        for block, offset in self._memory.layout.ranges():
            first, end = offset >> PAGE_SHIFT, (offset + block.size) >> PAGE_SHIFT
            low, high = np.searchsorted(numbers, np.array([first, end], np.uint64)).tolist()
            for at in range(low, high, BATCH_PAGES):
                chunk = numbers[at : min(at + BATCH_PAGES, high)]
                yield self._batch(block, np.uint64(first), chunk, touched)

    def _batch(self, block: RamBlock, first: np.uint64, numbers: PageNumbers, touched: PageSet) -> Batch:
        present = numbers[touched.holds(numbers)]
        content = self._content[: present.size]
        # mode="clip" lets numpy write straight to `content`; the numbers are those of a set of RAM pages.
        np.take(self._words, present.astype(np.int64), axis=0, out=content, mode="clip")
        full = np.bitwise_or.reduce(content, axis=1) != 0
        filled = present[full]
        zeros = np.setdiff1d(numbers, filled, assume_unique=True)
        pieces = [*self._pages(filled - first, content, full), *_zeros(zeros - first)]
        # The first entry of a part names the block; it then needs no CONTINUE.
        flag = RamFlag.PAGE if filled.size else RamFlag.ZERO
        offset = int((filled if filled.size else zeros)[0] - first) << PAGE_SHIFT
        pieces[0] = pieces[0][_HEADER_SIZE:]
        return Batch((encode_first(block.name, offset, flag), *pieces, END_OF_RAM_PART), filled.size, zeros.size)

    def _pages(
        self, places: PageNumbers, content: npt.NDArray[np.uint64], full: npt.NDArray[np.bool_]
    ) -> list[memoryview]:
        if not places.size:
            return []
        entries = self._entries[: places.size]
        entries["header"] = (places << np.uint64(PAGE_SHIFT)) | np.uint64(RamFlag.PAGE | RamFlag.CONTINUE)
        entries["page"] = content if places.size == len(content) else content[full]
        return [_bytes_of(entries)]


def _zeros(places: PageNumbers) -> list[memoryview]:
    if not places.size:
        return []
    entries = np.zeros(places.size, ZERO_ENTRY)
    entries["header"] = (places << np.uint64(PAGE_SHIFT)) | np.uint64(RamFlag.ZERO | RamFlag.CONTINUE)
    return [_bytes_of(entries)]


def _bytes_of(entries: npt.NDArray[Any]) -> memoryview:
    return entries.view(np.uint8).reshape(-1).data


class RamLoader:
    """Reads parts of the `ram` section into the shared plane.

    Attributes:
        pages: loaded so far.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._words = _words(memory)
        self._blocks = {block.name: (block, offset >> PAGE_SHIFT) for block, offset in memory.layout.ranges()}
        self._touched = populated(memory)
        self.pages = 0

    def load(self, reader: ByteReader) -> None:
        """Read one part, to its end mark.

        Raises:
            StreamError: an unknown RAMBlock or flag, or a page outside its block.
        """
        block: tuple[RamBlock, int] | None = None
        while True:
            held = reader.peek(_HEADER_SIZE, _GREED)
            header = int.from_bytes(held[:_HEADER_SIZE], "big")
            flags = header & FLAGS_MASK
            if flags == RamFlag.EOS:
                reader.skip(_HEADER_SIZE)
                return
            if flags & RamFlag.CONTINUE:
                if block is None:
                    raise StreamError("a part of the ram section starts without naming its RAMBlock")
                self._load_run(reader, header, block)
            else:
                reader.skip(_HEADER_SIZE)
                block = self._named(read_name(reader.take))
                self._load_one(reader, header, block)

    def _named(self, name: str) -> tuple[RamBlock, int]:
        try:
            return self._blocks[name]
        except KeyError:
            raise StreamError(f"the stream has pages of RAMBlock {name!r}, which this machine does not have") from None

    def _load_one(self, reader: ByteReader, header: int, block: tuple[RamBlock, int]) -> None:
        """The entry that named its block; its header is read."""
        places = np.array([header & ~FLAGS_MASK], np.uint64)
        match header & FLAGS_MASK:
            case RamFlag.PAGE:
                data = np.frombuffer(reader.take(PAGE_SIZE), np.uint64).reshape(1, -1)
                self._fill(self._numbers(places, block), data)
            case RamFlag.ZERO:
                _check_fill(np.frombuffer(reader.take(1), np.uint8))
                self._zero(self._numbers(places, block))
            case flags:
                raise StreamError(f"a page of the ram section has the unknown flags {flags:#x}")

    def _load_run(self, reader: ByteReader, header: int, block: tuple[RamBlock, int]) -> None:
        """As many entries of the same kind as lie in the buffer, at least one."""
        flags = header & FLAGS_MASK
        match flags ^ RamFlag.CONTINUE:
            case RamFlag.PAGE:
                entries = _run(reader, PAGE_ENTRY, flags)
                self._fill(self._numbers(_places(entries), block), entries["page"])
            case RamFlag.ZERO:
                entries = _run(reader, ZERO_ENTRY, flags)
                _check_fill(entries["fill"])
                self._zero(self._numbers(_places(entries), block))
            case _:
                raise StreamError(f"a page of the ram section has the unknown flags {flags:#x}")
        reader.skip(entries.nbytes)

    def _numbers(self, places: PageNumbers, block: tuple[RamBlock, int]) -> PageNumbers:
        found, first = block
        if int(places.max()) >= found.size:
            raise StreamError(f"a page at {int(places.max()):#x} is outside RAMBlock {found.name}")
        return (places >> np.uint64(PAGE_SHIFT)) + np.uint64(first)

    def _fill(self, numbers: PageNumbers, content: npt.NDArray[np.uint64]) -> None:
        self._words[numbers.astype(np.int64)] = content
        self._touched.add(numbers)
        self.pages += numbers.size

    def _zero(self, numbers: PageNumbers) -> None:
        self._words[numbers[self._touched.holds(numbers)].astype(np.int64)] = 0
        self.pages += numbers.size


def _run(reader: ByteReader, entry: np.dtype[Any], flags: int) -> npt.NDArray[Any]:
    """The entries with exactly these flags at the buffer's front; those of another kind parse as something else."""
    held = reader.peek(entry.itemsize, max(_GREED, entry.itemsize))
    entries = np.frombuffer(held, entry, len(held) // entry.itemsize)
    same = (entries["header"] & np.uint64(FLAGS_MASK)) == flags
    length = len(entries) if same.all() else int(same.argmin())
    return entries[:length]


def _places(entries: npt.NDArray[Any]) -> PageNumbers:
    return entries["header"].astype(np.uint64) & np.uint64(~FLAGS_MASK & ((1 << 64) - 1))


def _check_fill(fill: npt.NDArray[np.uint8]) -> None:
    if fill.any():
        raise StreamError(f"a page filled with {int(fill.max()):#04x} is not a zero page")


def populated(memory: SharedMemory) -> PageSet:
    """Pages of the shared plane that were ever touched: the memfd's data, without its holes."""
    pages = memory.layout.pages
    found = PageSet(pages)
    fd, size, end = memory.mapping.fd, memory.layout.size, 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # nothing but a hole up to the end
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.add_range(start >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT)
    return found


def _words(memory: SharedMemory) -> Words:
    words: Words = np.frombuffer(memory.mapping.view, np.uint64).reshape(memory.layout.pages, PAGE_SIZE // 8)
    return words
