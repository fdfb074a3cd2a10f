"""The slot's registers and the agreement with the driver."""

from __future__ import annotations

import pytest

from sealift.errors import InternalError, StreamError
from sealift.launch.microvm import VIRTIO_BASE, VIRTIO_STRIDE
from sealift.vmm.devices.bus import MmioBus
from sealift.vmm.devices.virtio import link
from sealift.vmm.devices.virtio.link import ACCESS_PLATFORM, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET, VERSION_1
from sealift.vmm.devices.virtio.mmio import EmptySlot, VirtioMmio
from sealift.vmm.devices.virtio.rng import Rng

from .driver import AREAS, CONFIG, INTERRUPT, QUEUE, QUEUE_MAX, QUEUE_READY, QUEUE_SIZE, STATUS, Driver, Line, Memory


@pytest.fixture
def driver() -> Driver:
    memory, line = Memory(), Line()
    return Driver(memory, VirtioMmio(1, Rng(bytes), memory, line), line)


def test_a_driver_finds_the_device_by_its_registers(driver: Driver) -> None:
    assert [driver.read(offset) for offset in (0, 4, 8)] == [0x7472_6976, 2, 4]
    assert driver.slot.window == range(VIRTIO_BASE + VIRTIO_STRIDE, VIRTIO_BASE + 2 * VIRTIO_STRIDE)
    assert driver.read(QUEUE_MAX) == 256
    driver.write(QUEUE, 1)
    assert driver.read(QUEUE_MAX) == 0
    assert driver.read(0x0B0) == 0xFFFF_FFFF


def test_an_empty_slot_has_device_id_0_and_swallows_the_rest() -> None:
    slot = EmptySlot(2)
    slot.write(slot.window.start + STATUS, 4, 1)
    assert [slot.read(slot.window.start + offset, 4) for offset in (0, 4, 8, STATUS)] == [0x7472_6976, 2, 0, 0]


def test_the_bus_reads_ones_where_nobody_answers(driver: Driver) -> None:
    bus = MmioBus((driver.slot, EmptySlot(0)))
    base = VIRTIO_BASE
    assert bus.read(base + VIRTIO_STRIDE + 8, 4) == 4
    assert bus.read(base + 8, 4) == 0
    assert bus.read(base - 4, 4) == 0xFFFF_FFFF
    assert bus.read(base + 2 * VIRTIO_STRIDE - 2, 4) == 0xFFFF_FFFF
    assert bus.read(base + 2 * VIRTIO_STRIDE, 8) == (1 << 64) - 1
    bus.write(base + 2 * VIRTIO_STRIDE, 4, 1)
    bus.write(base + VIRTIO_STRIDE + STATUS, 4, 1)
    assert driver.read(STATUS) == 1
    with pytest.raises(InternalError, match="both claim"):
        MmioBus((EmptySlot(0), EmptySlot(0)))


@pytest.mark.parametrize("missing", [VERSION_1, ACCESS_PLATFORM])
def test_a_driver_that_would_name_private_pages_or_is_of_the_old_kind_is_refused(driver: Driver, missing: int) -> None:
    assert not driver.accept(driver.offered() & ~missing)


def test_features_that_were_not_offered_are_refused_and_the_rest_can_be_chosen_again(driver: Driver) -> None:
    assert not driver.accept(driver.offered() | 1 << 5)
    assert driver.accept(driver.offered())
    driver.accept(0)
    assert driver.read(STATUS) & FEATURES_OK
    assert driver.slot.link.features == driver.offered()


def test_steps_are_taken_in_order_and_never_back(driver: Driver) -> None:
    driver.write(STATUS, DRIVER_OK)
    assert driver.read(STATUS) == 0
    driver.write(STATUS, FEATURES_OK | NEEDS_RESET)
    assert driver.read(STATUS) == 0
    driver.begin()
    driver.write(STATUS, 1)
    assert driver.read(STATUS) == 1 | 2 | DRIVER_OK | FEATURES_OK


def test_after_failed_nothing_is_served_until_a_reset(driver: Driver) -> None:
    driver.begin()
    driver.write(STATUS, driver.read(STATUS) | FAILED)
    driver.rings[0].add([], [16])
    driver.kick()
    assert driver.rings[0].used() == []
    driver.write(STATUS, 0)
    assert driver.read(STATUS) == 0


@pytest.mark.parametrize(("size", "areas"), [(0, None), (3, None), (512, None), (16, 0), (16, 1), (16, 2)])
def test_a_queue_of_impossible_size_or_alignment_needs_a_reset(driver: Driver, size: int, areas: int | None) -> None:
    driver.accept(driver.offered())
    driver.rings[0].size = size
    if areas is not None:
        driver.rings[0].areas[areas] += 1
    driver.set_up_queue(0)
    assert driver.read(STATUS) & NEEDS_RESET
    assert driver.read(QUEUE_READY) == 0
    assert driver.slot.link.complaint


def test_the_driver_hears_of_its_mistake_and_a_reset_makes_it_good(driver: Driver) -> None:
    driver.begin()
    driver.rings[0].offer(99)
    driver.kick()
    assert driver.read(STATUS) & NEEDS_RESET
    assert driver.line.pulses == 1
    assert driver.acknowledge() == link.CONFIG_CHANGE
    driver.memory.data[:] = bytes(len(driver.memory.data))
    Driver(driver.memory, driver.slot, driver.line).begin().rings[0].add([], [16])
    driver.kick()
    assert driver.acknowledge() == link.USED_BUFFER
    assert driver.read(INTERRUPT) == 0


def test_a_queue_in_use_cannot_be_moved_and_one_that_stopped_starts_from_the_front(driver: Driver) -> None:
    driver.begin()
    driver.rings[0].add([], [16])
    driver.kick()
    assert driver.rings[0].used() == [16]
    for register in (QUEUE_SIZE, *AREAS):
        driver.write(register, 0x8000)
    assert driver.slot.link.queues[0].areas == driver.rings[0].areas
    driver.write(QUEUE_READY, 0)
    assert driver.read(QUEUE_READY) == 0
    driver.memory.data[:] = bytes(len(driver.memory.data))
    again = Driver(driver.memory, driver.slot, driver.line)
    again.set_up_queue(0)
    again.rings[0].add([], [8])
    again.kick()
    assert again.rings[0].used() == [8]


def test_registers_ignore_accesses_of_other_sizes_and_what_they_do_not_have(driver: Driver) -> None:
    base = driver.slot.window.start
    driver.slot.write(base + STATUS, 1, 1)
    driver.write(0x0F0, 1)
    driver.write(CONFIG, 1)
    driver.write(QUEUE, 7)
    for register in (QUEUE_SIZE, QUEUE_READY, *AREAS):
        driver.write(register, 1)
    assert driver.read(STATUS) == driver.read(STATUS, 2) == driver.read(0x0F0) == driver.read(CONFIG) == 0
    assert driver.read(QUEUE_READY) == 0


def test_state_of_another_device_or_of_no_driver_is_refused(driver: Driver) -> None:
    memory, line = Memory(), Line()
    driver.begin()
    saved = driver.slot.save()
    for wrong in (b"", b"\xc0", saved[:-1]):
        with pytest.raises(StreamError):
            VirtioMmio(1, Rng(bytes), memory, line).restore(wrong)
    with pytest.raises(StreamError, match="none here"):
        EmptySlot(1).restore(saved)
    driver.slot.link.features = 0
    with pytest.raises(StreamError, match="not one that a driver"):
        VirtioMmio(1, Rng(bytes), memory, line).restore(driver.slot.save())
    driver.begin()
    driver.slot.link.queues[0].size = 3
    with pytest.raises(StreamError, match="cannot be"):
        VirtioMmio(1, Rng(bytes), memory, line).restore(driver.slot.save())
