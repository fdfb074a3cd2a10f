"""Core files: judged by readelf and gdb, and compared with the guest they are of."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import judges
from migration import rig
from sealift.address import PAGE_SHIFT, PAGE_SIZE
from sealift.errors import UserError
from sealift.guest.programs import program
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.vmm.debug.cpu import GENERAL, CpuRegisters, read_cpu
from sealift.vmm.debug.dump import Dump, DumpInfo, DumpStatus, DumpWishes
from sealift.vmm.debug.elfcore import Load, head
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.debug.virtual import VirtualMemory
from sealift.vmm.runstate import RunState
from sealift.wire.platform import Registers, Segment, SystemRegisters, Table

from .conftest import BLOCKS, start

PAYLOAD = b"payload " * 100
FORBIDDEN = "forbids its host to debug it (bit 0, NODBG, is set)"


def dumped(guest: rig.Guest, wishes: DumpWishes) -> DumpInfo:
    told: list[DumpInfo] = []
    dump = Dump(guest.machine, wishes, told.append)
    dump.run()
    assert told == [dump.info]
    return dump.info


def tool(name: str) -> str:
    return judges.program(name, {"readelf": "binutils"}.get(name, name))


def readelf(*arguments: str | Path) -> str:
    found = subprocess.run([tool("readelf"), *map(str, arguments)], capture_output=True, text=True, check=True)
    assert "Warning" not in found.stdout + found.stderr, found.stderr
    return found.stdout


def gdb(core: Path, *commands: str) -> str:
    """What gdb, which knows nothing of the guest but the file, says."""
    words = [word for command in commands for word in ("-ex", command)]
    found = subprocess.run(
        [tool("gdb"), "-nx", "-batch", "-ex", "set architecture i386:x86-64", "-ex", f"core-file {core}", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=rig.PATIENCE_S,
    )
    return found.stdout + found.stderr


def loads(core: Path) -> list[tuple[int, int, int, int]]:
    """Offset, virtual address, physical address and length, as readelf finds them."""
    pattern = r"LOAD\s+(0x\w+) (0x\w+) (0x\w+)\s+(0x\w+) (0x\w+)"
    found = [tuple(int(value, 16) for value in match) for match in re.findall(pattern, readelf("-lW", core))]
    assert all(in_file == in_memory for *_, in_file, in_memory in found)
    return [(offset, virtual, physical, length) for offset, virtual, physical, length, _ in found]


def content(core: Path) -> bytes:
    """Physical memory that a dump by physical addresses holds."""
    data = core.read_bytes()
    return b"".join(data[offset : offset + length] for offset, _, _, length in loads(core))


@pytest.fixture
def paused(any_guest: rig.Guest) -> Iterator[rig.Guest]:
    """A guest of each type that stands still during a test."""
    any_guest.machine.pause()
    yield any_guest
    any_guest.machine.resume()


def test_a_core_file_is_what_the_guest_is(paused: rig.Guest, tmp_path: Path) -> None:
    """Memory, and each vCPU's registers as gdb reads them."""
    core = tmp_path / "guest.core"
    assert dumped(paused, DumpWishes(core)) == DumpInfo(DumpStatus.COMPLETED, BLOCKS.size, BLOCKS.size)
    assert core.stat().st_mode & 0o777 == 0o600
    header = readelf("-h", core)
    assert re.search(r"Class:\s+ELF64", header)
    assert re.search(r"Type:\s+CORE", header)
    assert re.search(r"Machine:\s+Advanced Micro Devices X86-64", header)
    assert [(virtual, physical, length) for _, virtual, physical, length in loads(core)] == [
        (block.gpa, block.gpa, block.size) for block in BLOCKS.blocks
    ]
    assert content(core) == debug_memory(paused.machine).read(0, BLOCKS.size)
    notes = readelf("-nW", core)
    assert re.search(r"CORE\s+0x00000150\s+NT_PRSTATUS", notes)
    assert re.search(r"QEMU\s+0x000001b8\s", notes)

    cpu = read_cpu(paused.machine, 0)
    said = gdb(core, "info threads", "info registers rip rsp rbx eflags fs_base", "x/2gx 0xa00000")
    assert "LWP 1" in said
    general = cpu.registers.general
    for name, value in (("rip", cpu.registers.rip), ("rsp", general[7]), ("rbx", general[GENERAL.index("rbx")])):
        assert re.search(rf"^{name}\s+{value:#x}\s", said, re.MULTILINE), (name, hex(value), said)
    first, second = struct.unpack("<2Q", debug_memory(paused.machine).read(0xA0_0000, 16))
    assert re.search(rf"0xa00000:\s+0x{first:016x}\s+0x{second:016x}", said), said


def test_with_paging_addresses_are_the_guests_own(paused: rig.Guest, tmp_path: Path) -> None:
    core = tmp_path / "guest.core"
    assert dumped(paused, DumpWishes(core, paging=True)).status is DumpStatus.COMPLETED
    cpu = read_cpu(paused.machine, 0)
    virtual = VirtualMemory(debug_memory(paused.machine), cpu.paging)
    for _, address, gpa, length in loads(core):
        assert virtual.walker.translate(address).gpa == gpa
        assert virtual.walker.translate(address + length - 1).gpa == gpa + length - 1
    rip = cpu.registers.rip
    said = gdb(core, "x/16bx $rip")
    assert bytes(int(byte, 16) for byte in re.findall(r"\t0x(\w\w)", said)) == virtual.read(rip, 16), said


def test_a_part_of_memory_is_dumped_alone(paused: rig.Guest, tmp_path: Path) -> None:
    """Across the border of two RAMBlocks, and neither begins nor ends with a page."""
    border = BLOCKS.blocks[1].gpa
    begin, length = border - 0x1234, 0x3000
    for paging in (False, True):
        core = tmp_path / f"{paging}.core"
        info = dumped(paused, DumpWishes(core, paging=paging, begin=begin, length=length))
        assert info == DumpInfo(DumpStatus.COMPLETED, length, length)
        assert {(gpa, length) for _, _, gpa, length in loads(core)} == {(begin, 0x1234), (border, length - 0x1234)}
    assert content(tmp_path / "False.core") == debug_memory(paused.machine).read(begin, length)


def test_memory_that_nobody_used_takes_no_room(paused: rig.Guest, tmp_path: Path) -> None:
    dumped(paused, DumpWishes(tmp_path / "guest.core"))
    status = (tmp_path / "guest.core").stat()
    assert status.st_size > BLOCKS.size
    assert status.st_blocks * 512 < BLOCKS.size // 2


def test_a_guest_that_runs_stands_still_meanwhile_and_goes_on(
    any_guest: rig.Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_guest.work(1)
    inside: list[set[int]] = []
    dump = Dump(any_guest.machine, DumpWishes(tmp_path / "guest.core"), lambda _: None)
    registers = dump._registers

    def watched() -> tuple[CpuRegisters, ...]:
        inside.append(set(any_guest.machine.vcpus._active))
        return registers()

    monkeypatch.setattr(dump, "_registers", watched)
    dump.run()
    assert (dump.info.status, inside) == (DumpStatus.COMPLETED, [set()])
    assert any_guest.machine.state is RunState.RUNNING
    any_guest.work(4)


def test_in_a_raw_dump_private_memory_is_ciphertext(world: rig.World, tmp_path: Path) -> None:
    guest = start(world, "sev")
    guest.work(4)
    guest.machine.pause()
    clear, raw = tmp_path / "clear.core", tmp_path / "raw.core"
    for wishes in (DumpWishes(clear), DumpWishes(raw, raw=True)):
        assert dumped(guest, wishes).status is DumpStatus.COMPLETED
    decrypted, hidden = content(clear), content(raw)
    assert PAYLOAD in decrypted
    assert PAYLOAD not in hidden
    shared = guest.machine.shared_pages_now()
    assert shared
    for page in map(int, shared.numbers()):
        place = slice(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT)
        assert hidden[place] == decrypted[place]
    assert "LWP 1" in gdb(raw, "info threads")
    guest.machine.resume()
    guest.work(4)


# --- policies ------------------------------------------------------------------------------------------------------


def test_nodbg_refuses_all_but_a_raw_dump(closed: rig.World, tmp_path: Path) -> None:
    """Registers of a guest without SEV-ES are the host's to see."""
    guest = closed.start()
    guest.work(1)
    for paging in (False, True):
        info = dumped(guest, DumpWishes(tmp_path / "no.core", paging=paging))
        assert info.status is DumpStatus.FAILED
        assert FORBIDDEN in str(info.error)
        assert list(tmp_path.iterdir()) == []
    assert dumped(guest, DumpWishes(tmp_path / "raw.core", raw=True)).note is None
    assert "NT_PRSTATUS" in readelf("-nW", tmp_path / "raw.core")
    assert PAYLOAD not in (tmp_path / "raw.core").read_bytes()
    guest.work(2)


@pytest.mark.parametrize("policy", [Policy.ES, DEFAULT_POLICY | Policy.ES])
def test_encrypted_registers_are_there_if_the_policy_lets_them(hosts: Path, tmp_path: Path, policy: Policy) -> None:
    with rig.world(hosts, replace(rig.recipe(vcpus=2), kernel=program("idle")), policy) as world:
        guest = world.start()
        assert guest.machine.vcpus.wait_all_halted(rig.PATIENCE_S)
        guest.machine.pause()
        info = dumped(guest, DumpWishes(tmp_path / "raw.core", raw=True))
        assert info.status is DumpStatus.COMPLETED, info
        if Policy.NODBG in policy:
            assert "it holds no registers: they are encrypted (SEV-ES)" in str(info.note)
            assert readelf("-nW", tmp_path / "raw.core") == ""
            assert loads(tmp_path / "raw.core")
            assert FORBIDDEN in str(dumped(guest, DumpWishes(tmp_path / "no.core")).error)
            return
        assert dumped(guest, DumpWishes(tmp_path / "es.core", paging=True)).status is DumpStatus.COMPLETED
        said = gdb(tmp_path / "es.core", "thread 2", "info registers rip", "x/8bx $rip")
        cpu = read_cpu(guest.machine, 1)
        assert re.search(rf"^rip\s+{cpu.registers.rip:#x}\s", said, re.MULTILINE), said
        code = VirtualMemory(debug_memory(guest.machine), cpu.paging).read(cpu.registers.rip, 8)
        assert bytes(int(byte, 16) for byte in re.findall(r"\t0x(\w\w)", said)) == code


# --- wrong wishes, and what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"path": Path("here.core")}, "no absolute path"),
        ({"begin": 0}, "'begin' and 'length' go together"),
        ({"begin": 0, "length": 0}, "a dump of no bytes"),
        ({"raw": True, "paging": True}, "in ciphertext there are no page tables"),
    ],
)
def test_wishes_that_contradict_each_other_are_told(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        DumpWishes(**{"path": Path("/somewhere/guest.core"), **wrong})


def test_there_must_be_something_to_dump(any_guest: rig.Guest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no guest RAM"):
        Dump(any_guest.machine, DumpWishes(tmp_path / "no.core", begin=BLOCKS.end, length=1 << 20), lambda _: None)


def test_a_file_that_is_there_is_not_overwritten(any_guest: rig.Guest, tmp_path: Path) -> None:
    (tmp_path / "guest.core").write_text("precious")
    assert "exists already" in str(dumped(any_guest, DumpWishes(tmp_path / "guest.core")).error)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("guest.core", "precious")]
    assert "no dump can be written in" in str(dumped(any_guest, DumpWishes(tmp_path / "none" / "guest.core")).error)


def test_a_dump_that_is_cancelled_leaves_no_file(any_guest: rig.Guest, tmp_path: Path) -> None:
    dump = Dump(any_guest.machine, DumpWishes(tmp_path / "guest.core"), lambda _: None)
    dump.cancel()
    dump.run()
    assert (dump.wait().status, dump.info.error) == (DumpStatus.FAILED, "the dump was cancelled")
    assert list(tmp_path.iterdir()) == []
    assert any_guest.machine.state is RunState.RUNNING


# --- the layout -----------------------------------------------------------------------------------------------------


def test_more_program_headers_than_a_header_can_count(tmp_path: Path) -> None:
    """As in any core file of that kind, section header 0 has their number."""
    count = 70_000
    begin = head([Load(page * PAGE_SIZE, page * PAGE_SIZE, PAGE_SIZE, 0) for page in range(count)], [])
    assert len(begin) % PAGE_SIZE == 0
    (tmp_path / "many.core").write_bytes(begin + bytes(PAGE_SIZE))
    assert f"Number of program headers:         65535 ({count})" in readelf("-h", tmp_path / "many.core")
    assert len(loads(tmp_path / "many.core")) == count


def test_the_notes_hold_every_register() -> None:
    """QEMU's note by its own layout (target/i386/arch_dump.c)."""
    segments = {
        name: Segment(number, 0x1000 * number, 0xFFFF + number, 0xA9B if name == "cs" else 0xC93)
        for number, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"), 1)
    }
    system = SystemRegisters(**segments, gdtr=Table(0x77, 0x7F), idtr=Table(0x88, 0x8F), cr8=0, kernel_gs_base=0x99)
    registers = Registers(tuple(range(100, 116)), 0xA1, 0xA2, cr0=0xC0, cr2=0xC2, cr3=0xC3, cr4=0xC4, efer=0xE)
    data = head([], [CpuRegisters(4, registers, system, None)])
    at = data.index(b"QEMU\0") + 8
    version, size, *values = struct.unpack_from("<II18Q", data, at)
    assert (version, size) == (1, 440)
    assert values == [100, 101, 102, 103, 104, 105, 107, 106, *range(108, 116), 0xA1, 0xA2]
    cs = struct.unpack_from("<IIIIQ", data, at + 152)
    assert cs == (2, 0x10001, 0x00A0_9B00, 0, 0x2000)
    assert struct.unpack_from("<IIIIQ", data, at + 152 + 8 * 24) == (0, 0x7F, 0, 0, 0x77)
    assert struct.unpack_from("<6Q", data, at + 152 + 10 * 24) == (0xC0, 0, 0xC2, 0xC3, 0xC4, 0x99)
    at = data.index(b"CORE\0") + 8
    assert struct.unpack_from("<I", data, at + 32) == (5,)
    status = struct.unpack_from("<27Q", data, at + 112)
    assert status[-11:] == (0xA1, 2, 0xA2, 107, 3, 0x5000, 0x6000, 4, 1, 5, 6)
