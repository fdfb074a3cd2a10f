"""Devices reach guest memory where all of it is shared, and what they write is in the VMM's own dirty set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import GuestError
from sealift.pageset import PageSet
from sealift.vmm.devices.dma import SharedDma
from sealift.vmm.memory import SharedMemory

LAYOUT = RamLayout((RamBlock("low", Gpa(0), 4 * PAGE_SIZE), RamBlock("high", Gpa(1 << 32), 4 * PAGE_SIZE)))
HIGH = 1 << 32


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    fd = os.memfd_create("test-shared")
    os.ftruncate(fd, LAYOUT.size)
    found = SharedMemory(fd, LAYOUT)
    yield found
    found.mapping.close()


def test_what_is_shared_is_reached_and_marked(memory: SharedMemory) -> None:
    shared = PageSet(LAYOUT.pages)
    shared.add_range(5, 2)
    dma = SharedDma(memory, shared.has_range)
    dma.write(HIGH + 2 * PAGE_SIZE - 2, b"both")
    assert dma.read(HIGH + 2 * PAGE_SIZE - 2, 4) == b"both"
    assert list(memory.take_device_dirty().numbers()) == [5, 6]


@pytest.mark.parametrize("gpa", [0, HIGH + PAGE_SIZE - 1, HIGH + 3 * PAGE_SIZE - 1, 4 * PAGE_SIZE - 1, 1 << 40])
def test_what_is_not_wholly_shared_is_refused_and_stays(memory: SharedMemory, gpa: int) -> None:
    shared = PageSet(LAYOUT.pages)
    shared.add_range(5, 2)
    dma = SharedDma(memory, shared.has_range)
    with pytest.raises(GuestError):
        dma.read(gpa, 2)
    with pytest.raises(GuestError):
        dma.write(gpa, b"no")
    assert not any(memory.mapping.view)
    assert not memory.take_device_dirty()
