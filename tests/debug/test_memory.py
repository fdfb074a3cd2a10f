"""Debug access by physical address: what is read and written, on which plane, and what a migration makes of it."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from migration import rig
from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import SealiftError, UserError
from sealift.vmm.debug.cpu import read_cpu
from sealift.vmm.debug.memory import (
    Ciphertext,
    DebugForbiddenError,
    DebugMemory,
    NotRamError,
    SevDebugMemory,
    View,
    debug_memory,
)
from sealift.vmm.debug.virtual import VirtualMemory
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.handover import Method

from .conftest import BLOCKS, start

FREE = 0xE0_0000
"""RAM that the guest does not use."""
UNUSED = 0x10_0000
"""RAM that nobody uses."""
BORDERS = {"page": FREE + PAGE_SIZE, "window": wire.DEBUG_WINDOW, "block": BLOCKS.blocks[1].gpa}
NEEDLE = b"something that only the debugger and the guest have"
PAYLOAD = b"payload " * 100
"""What the guest has on private pages from its launch on."""
PARTS = list(product((0, 8, 15), (1, 8, 9, 16, 17)))
"""Offset and length: where older kernels rounded a length without its offset."""


@pytest.fixture
def memory(any_guest: rig.Guest) -> DebugMemory:
    """That of a running guest of each type."""
    return debug_memory(any_guest.machine)


def test_what_was_launched_is_read(world: rig.World, any_guest: rig.Guest, memory: DebugMemory) -> None:
    assert any_guest.machine.state is RunState.RUNNING
    kernel = next(piece for piece in world.recipe.pieces() if piece.gpa == 0xA0_0000)
    assert memory.read(kernel.gpa + 5, 4099) == kernel.data[5:4104]


@pytest.mark.parametrize("border", BORDERS)
def test_a_write_changes_its_own_bytes_and_no_others(memory: DebugMemory, border: str) -> None:
    """At every place in and around a block of 16 bytes, inside a page and across every kind of border."""
    for begin, (offset, length) in product((FREE + 0x40, BORDERS[border] - 16), PARTS):
        background = bytes(range(0x80, 0xC0))
        memory.write(begin, background)
        memory.write(begin + offset, b"\x55" * length)
        expected = background[:offset] + b"\x55" * length + background[offset + length :]
        assert memory.read(begin, len(background)) == expected, (hex(begin), offset, length)
        assert memory.read(begin + offset, length) == b"\x55" * length


def test_large_accesses_cross_windows_and_blocks(memory: DebugMemory) -> None:
    data = np.random.default_rng(1).bytes((3 << 20) + 77)
    memory.write(BORDERS["block"] - (1 << 20) - 13, data)
    assert memory.read(BORDERS["block"] - (1 << 20) - 13, len(data)) == data


def test_nothing_can_be_reached_where_there_is_no_ram(memory: DebugMemory) -> None:
    memory.write(BLOCKS.end - 8, b"the end!")
    for gpa, length, missing in ((BLOCKS.end, 1, BLOCKS.end), (BLOCKS.end - 8, 9, BLOCKS.end), (1 << 46, 8, 1 << 46)):
        with pytest.raises(NotRamError, match=f"GPA {missing:#x} is no RAM"):
            memory.read(gpa, length)
        with pytest.raises(NotRamError, match=f"GPA {missing:#x} is no RAM"):
            memory.write(gpa, bytes(length))
    assert memory.read(BLOCKS.end - 8, 8) == b"the end!"
    assert memory.read(BLOCKS.end, 0) == b""


def test_looking_at_memory_that_was_never_used_does_not_fill_it(any_guest: rig.Guest, memory: DebugMemory) -> None:
    platform = any_guest.machine.platform
    any_guest.machine.pause()
    before = platform.request(wire.CountPopulated(), wire.Count).pages
    assert memory.read(UNUSED, 1 << 20) == bytes(1 << 20)
    assert platform.request(wire.CountPopulated(), wire.Count).pages == before
    any_guest.machine.resume()


def test_the_guest_runs_on_while_it_is_looked_at(any_guest: rig.Guest, memory: DebugMemory) -> None:
    any_guest.work(1)
    before = any_guest.machine.vcpus.exits[wire.Interrupted]
    for _ in range(20):
        memory.read(0, BLOCKS.size)
    assert any_guest.machine.vcpus.exits[wire.Interrupted] == before
    any_guest.work(4)


def test_the_guest_stands_still_while_it_is_written_to_and_goes_on(
    any_guest: rig.Guest, memory: DebugMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it stored between the reading of a block and its writing would be lost."""
    inside: list[set[int]] = []
    request = any_guest.machine.platform.request

    def watched(message: wire.Message, expect: type[wire.Message]) -> wire.Message:
        if isinstance(message, wire.DbgEncrypt | wire.DbgDecrypt | wire.InvalidateCode):
            inside.append(set(any_guest.machine.vcpus._active))
        return request(message, expect)

    monkeypatch.setattr(any_guest.machine.platform, "request", watched)
    any_guest.work(1)
    for _ in range(20):
        memory.write(FREE + 5, b"some bytes")
    assert inside
    assert not any(inside)
    assert any_guest.machine.state is RunState.RUNNING
    any_guest.work(4)


@pytest.mark.parametrize("kind", ["sev", "plain"])
def test_code_that_is_written_is_executed_and_a_guest_that_has_ended_is_not_looked_at(
    world: rig.World, kind: str
) -> None:
    """Though the vCPU had it translated, it runs into an instruction that is none."""
    guest = start(world, kind)
    guest.work(1)
    machine, memory = guest.machine, debug_memory(guest.machine)
    with machine.stilled():
        cpu = read_cpu(machine, 0)
    machine.ready.clear()
    VirtualMemory(memory, cpu.paging).write(cpu.registers.rip, b"\x0f\x0b")
    assert machine.ready.wait(rig.PATIENCE_S)
    assert machine.state is RunState.GUEST_PANICKED
    assert f"RIP={cpu.registers.rip:016x}" in str(machine.report)
    machine.close()
    with pytest.raises(SealiftError, match=r"is gone|has ended"):
        memory.read(FREE, 16)
    with pytest.raises(UserError, match="shutdown"):
        memory.write(FREE, b"x")


# --- private and shared ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(world: rig.World) -> tuple[rig.Guest, SevDebugMemory, int]:
    """A paused SEV guest, its memory, and a page that it shares next to one that it does not."""
    guest = start(world, "sev")
    guest.work(4)
    guest.machine.pause()
    memory = debug_memory(guest.machine)
    assert isinstance(memory, SevDebugMemory)
    shared = guest.machine.shared_pages_now()
    first, count = next((first, count) for first, count in shared.runs() if first)
    return guest, memory, first + count - 1


def test_each_page_is_read_from_where_the_guest_declared_it(mixed: tuple[rig.Guest, SevDebugMemory, int]) -> None:
    guest, memory, _ = mixed
    expected = np.frombuffer(memory.read(0, BLOCKS.size, View.PRIVATE), np.uint8).reshape(-1, PAGE_SIZE).copy()
    plane = np.frombuffer(bytes(guest.machine.memory.mapping.view), np.uint8).reshape(-1, PAGE_SIZE)
    shared = guest.machine.platform.page_states().numbers().astype(np.int64)
    assert (plane[shared] != expected[shared]).any()
    expected[shared] = plane[shared]
    assert memory.read(0, BLOCKS.size) == expected.tobytes()
    assert memory.read(3, BLOCKS.size - 9) == expected.tobytes()[3:-6]


def test_a_write_across_page_states_reaches_each_plane(mixed: tuple[rig.Guest, SevDebugMemory, int]) -> None:
    guest, memory, page = mixed
    behind = (page + 1) << PAGE_SHIFT
    hidden = memory.read(behind - PAGE_SIZE, PAGE_SIZE, View.PRIVATE)
    memory.write(behind - 5, b"12345abcdefg")
    assert guest.machine.memory.read(behind - 5, 5) == b"12345"
    assert memory.read(behind, 7, View.PRIVATE) == b"abcdefg"
    assert memory.read(behind - PAGE_SIZE, PAGE_SIZE, View.PRIVATE) == hidden
    assert memory.read(behind - 5, 12) == b"12345abcdefg"


def test_through_the_key_a_shared_page_shows_what_it_hides(mixed: tuple[rig.Guest, SevDebugMemory, int]) -> None:
    guest, memory, page = mixed
    before = guest.machine.memory.read(page << PAGE_SHIFT, 64)
    memory.write((page << PAGE_SHIFT) + 3, b"hidden", View.PRIVATE)
    assert memory.read((page << PAGE_SHIFT) + 3, 6, View.PRIVATE) == b"hidden"
    assert guest.machine.memory.read(page << PAGE_SHIFT, 64) == before


def test_what_the_host_sees_is_ciphertext(mixed: tuple[rig.Guest, SevDebugMemory, int]) -> None:
    guest, memory, page = mixed
    memory.write(FREE, NEEDLE)
    raw = Ciphertext(guest.machine).read(0, BLOCKS.size)
    assert NEEDLE in memory.read(0, BLOCKS.size)
    assert NEEDLE not in raw
    assert raw[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT] == guest.machine.memory.read(
        page << PAGE_SHIFT, PAGE_SIZE
    )


# --- refusals ------------------------------------------------------------------------------------------------------


def test_nodbg_keeps_the_host_out_and_says_why(closed: rig.World) -> None:
    """Not out of what the guest shares: that is the host's own, whatever the policy says."""
    guest = closed.start()
    guest.work(4)
    memory = debug_memory(guest.machine)
    for look in (
        lambda: memory.read(FREE, 16),
        lambda: memory.write(FREE, b"x"),
        lambda: memory.write(FREE, bytes(16)),
    ):
        with pytest.raises(DebugForbiddenError, match=re.escape("forbids its host to debug it (bit 0, NODBG, is set)")):
            look()
    guest.work(2)
    guest.machine.pause()
    page = int(guest.machine.shared_pages_now().numbers()[0])
    assert memory.read(page << PAGE_SHIFT, 64) == guest.machine.memory.read(page << PAGE_SHIFT, 64)
    assert PAYLOAD not in Ciphertext(guest.machine).read(0, BLOCKS.size)


# --- migrations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", Method)
def test_a_migration_loses_no_debug_write(world: rig.World, method: Method) -> None:
    """At every write to the wire, up to the moment from which on the guest is the migration's."""
    guest = start(world, "plain" if method is Method.PLAIN else "sev")
    guest.work(4)
    memory = debug_memory(guest.machine)
    places = [FREE + offset for offset in (3, PAGE_SIZE - 2, 0x8_0008)]
    numbers: list[int] = []
    refused: list[str] = []

    def write(data: bytes, _: int) -> bytes:
        try:
            for place in places:
                memory.write(place, b"write %5d" % len(numbers))
            numbers.append(len(numbers))
        except UserError as error:
            refused.append(str(error))
        return data

    parameters = Parameters(method=method)
    moved = rig.attempt(world, guest, parameters, edit=write)
    moved.begin()
    info = moved.end()
    assert info.status == "completed", info.error_desc
    assert len(numbers) > 3
    assert refused[0] == "the guest is finish-migrate; its memory can be written to once it runs or is paused"
    arrived = moved.guest().machine
    arrived.pause()
    there = debug_memory(arrived)
    for place in places:
        assert there.read(place, 11) == b"write %5d" % numbers[-1]
    with pytest.raises(UserError, match="the guest is postmigrate"):
        memory.write(FREE, b"too late")
