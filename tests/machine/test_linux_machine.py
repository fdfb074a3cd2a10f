"""Linux's machine without KVM: vCPUs that follow a script, on a platform that is played here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import LostError, UserError
from sealift.launch.machine import MachineType
from sealift.launch.microvm import (
    KEYBOARD_COMMAND_PORT,
    PM_CONTROL_PORT,
    RESET_VALUE,
    SERIAL_PORT,
    SLEEP_TYPE_OFF,
    VIRTIO_BASE,
)
from sealift.vmm.console import Console
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.guest import Guest
from sealift.vmm.lastwords import PanicEar
from sealift.vmm.launch import Launched
from sealift.vmm.machine import GuestEnd, Machine, MachineSpec
from sealift.vmm.memory import SharedMemory
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.platform import Fault, Interrupted, Kick, MmioRead, Phase, PortOut, Registers, Run

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 1 << 20),))
PATIENCE_S = 20
MAGIC = int.from_bytes(b"virt", "little")


class ScriptedVcpu:
    """Leaves guest mode as its script says, then runs until it is kicked. Calls in a script are waited for.

    Attributes:
        runs: what it was told.
        inside: set once it has been in guest mode.
    """

    def __init__(self, script: list[Any]) -> None:
        self.runs: list[Run] = []
        self.inside = threading.Event()
        self.kicked = threading.Event()
        self._script = script
        self._gone = False

    def send(self, run: Run) -> None:
        """Enter."""
        self.runs.append(run)

    def receive(self) -> object:
        """Why it left."""
        if self.runs[-1].immediate_exit:
            return Interrupted()
        self.inside.set()
        while self._script:
            step = self._script.pop(0)
            if not callable(step):
                return step
            assert step()
        assert self.kicked.wait(PATIENCE_S)
        self.kicked.clear()
        if self._gone:
            raise LostError("the other process is gone")
        return Interrupted()

    def close(self) -> None:
        """The link ends."""

    def end(self) -> None:
        """The platform ends."""
        self._gone = True
        self.kicked.set()


@dataclass
class PlayedPlatform:
    """Just enough of a platform."""

    vcpus: list[ScriptedVcpu]
    aware: bool = True
    cpu: object = None
    lines: list[int] = field(default_factory=list)

    def create_vm(
        self, layout: RamLayout, vcpus: int, _: object, *, irqchip: bool, es: bool, plain: bool
    ) -> SharedMemory:
        """RAM that only this process has."""
        assert irqchip
        assert not es
        assert not plain
        assert vcpus == len(self.vcpus)
        fd = os.memfd_create("played")
        os.ftruncate(fd, layout.size)
        return SharedMemory(fd, layout)

    def create_vcpu(self, index: int) -> ScriptedVcpu:
        """One of those given."""
        return self.vcpus[index]

    def interrupt(self, gsi: int) -> int:
        """Nobody listens to it."""
        self.lines.append(gsi)
        return os.eventfd(0, os.EFD_NONBLOCK)

    def do(self, message: Kick) -> None:
        """The only order that machines give here."""
        self.vcpus[message.index].kicked.set()

    def registers(self, _: int) -> Registers:
        """Each its own number."""
        return Registers(tuple(range(16)), 0x1234, 2, 0x8005_0033, 0, 0x1000, 0x620, 0xD00)

    def status(self) -> object:
        """What the guest lets be known."""
        played = (Obstacle(Code.NO_HANDLER, "it is only played"),)
        return SimpleNamespace(phase=Phase.RUNNING, aware=self.aware, blocked=played)

    def end(self) -> None:
        """All vCPUs find the other process gone."""
        for vcpu in self.vcpus:
            vcpu.end()

    def close(self) -> None:
        """Likewise."""
        self.end()


Start = Callable[..., Machine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes a machine whose vCPUs follow scripts, and lets it run."""
    machines: list[Machine] = []

    def make(*scripts: list[Any], aware: bool = True, disks: tuple[DiskImage, ...] = ()) -> Machine:
        platform = PlayedPlatform([ScriptedVcpu(script) for script in scripts], aware)
        spec = MachineSpec(LAYOUT, len(scripts), MachineType.MICROVM, disks)
        machines.append(Machine(cast("Platform", platform), spec, Console(), lambda _: None))
        machines[-1].resume()
        return machines[-1]

    yield make
    for machine in machines:
        machine.close()


def printing(text: str) -> list[PortOut]:
    return [PortOut(SERIAL_PORT, 1, byte) for byte in text.encode()]


RESET = PortOut(KEYBOARD_COMMAND_PORT, 1, RESET_VALUE)
POWER_OFF = PortOut(PM_CONTROL_PORT, 2, 1 << 13 | SLEEP_TYPE_OFF << 10)


def test_a_reboot_ends_the_run_and_the_console_says_why(start: Start) -> None:
    machine = start([*printing("bye\n"), RESET])
    assert machine.ready.wait(PATIENCE_S)
    assert (machine.state, machine.ended_by) == (RunState.SHUTDOWN, GuestEnd.RESET)
    assert "its owner attests it anew" in "\n".join(machine.console.tail(5))


def test_a_guest_that_switches_itself_off_has_ended_well(start: Start) -> None:
    machine = start([POWER_OFF])
    assert machine.ready.wait(PATIENCE_S)
    assert (machine.state, machine.ended_by) == (RunState.SHUTDOWN, GuestEnd.POWER_OFF)


def test_a_panic_that_ends_in_a_reset_is_a_panic_with_its_last_lines(start: Start) -> None:
    words = "Kernel panic - not syncing: Attempted to kill init!\nRIP: 0010:panic+0x1\n"
    machine = start([*printing(words), RESET])
    assert machine.ready.wait(PATIENCE_S)
    assert (machine.state, machine.ended_by) == (RunState.GUEST_PANICKED, None)
    assert machine.report is not None
    assert "Attempted to kill init!" in machine.report
    assert "RIP: 0010:panic+0x1" in machine.report


def test_a_panic_behind_which_linux_waits_for_ever_is_a_panic_too(start: Start) -> None:
    """Without ``panic=`` on its command line it never reboots; its last words are heard."""
    words = "Kernel panic - not syncing: VFS\n---[ end Kernel panic - not syncing: VFS ]---\n"
    machine = start(printing(words))
    assert machine.ready.wait(PATIENCE_S)
    assert machine.state is RunState.GUEST_PANICKED
    assert "its kernel panicked" in str(machine.report)
    assert "end Kernel panic" in str(machine.report)


@pytest.mark.parametrize(
    "words",
    [
        "Kernel panic - not syncing: of this the manual says much\n",
        "end Kernel panic - not syncing\n",
        "they say ---[ end Kernel panic - not syncing: VFS ]---\n",
        "---[ end Kernel panic - not syncing: VFS ]--- is its line\n",
        "---[ end Kernel panic - not syncing: VFS ]---",
        "-" * 5000 + "---[ end Kernel panic - not syncing: VFS ]---\n",
    ],
)
def test_who_only_speaks_of_a_panic_runs_on(start: Start, words: str) -> None:
    machine = start([*printing(words), POWER_OFF])
    assert machine.ready.wait(PATIENCE_S)
    assert machine.ended_by is GuestEnd.POWER_OFF


@pytest.mark.parametrize("stamp", ["", "[   12.345678] ", "[   12.345678][    T1] "])
def test_the_last_line_of_a_panic_is_known_however_it_comes_in_pieces(stamp: str) -> None:
    line = f"{stamp}---[ end Kernel panic - not syncing: VFS ]---\r\n".encode()
    text = b"before it\n" * 3 + b"x" * 5000 + b"\n" + line
    for size in (1, 7, 64, len(text)):
        ear = PanicEar()
        heard = [ear.hear(text[at : at + size]) for at in range(0, len(text), size)]
        assert heard == [False] * (len(heard) - 1) + [True]


def test_an_orderly_reboot_after_words_of_a_panic_is_a_reboot(start: Start) -> None:
    words = "Kernel panic - not syncing: an old log\n[   99.000001] reboot: Restarting system\n"
    machine = start([*printing(words), RESET])
    assert machine.ready.wait(PATIENCE_S)
    assert machine.ended_by is GuestEnd.RESET


def test_a_triple_fault_is_told_with_all_registers_or_that_there_are_none(start: Start) -> None:
    machine = start([*printing("last line\n"), Fault("a triple fault", 0, 0, 0, registers_kept=False)])
    assert machine.ready.wait(PATIENCE_S)
    assert machine.state is RunState.GUEST_PANICKED
    assert machine.report is not None
    assert "vCPU 0 stopped: a triple fault" in machine.report
    assert "none: the processor keeps none over a triple fault" in machine.report
    assert "last line" in machine.report

    kept = start([Fault("it could not emulate an instruction", 0x1234, 0, 0)])
    assert kept.ready.wait(PATIENCE_S)
    assert kept.report is not None
    for line in ("RAX=0000000000000000 RBX=0000000000000001", "R15=000000000000000f", "RIP=0000000000001234", "CR4="):
        assert line in kept.report


@pytest.mark.parametrize("access", [MmioRead(VIRTIO_BASE, 4), PortOut(SERIAL_PORT, 1, 0x41)], ids=["virtio", "serial"])
def test_a_kernel_without_memory_encryption_is_ended_at_its_first_device_with_a_sentence(
    start: Start, access: Any
) -> None:
    machine = start([access], aware=False)
    assert machine.ready.wait(PATIENCE_S)
    assert machine.state is RunState.GUEST_PANICKED
    assert machine.report is not None
    assert "CONFIG_AMD_MEM_ENCRYPT" in machine.report


def test_a_kernel_with_it_finds_its_devices(start: Start) -> None:
    machine = start([MmioRead(VIRTIO_BASE, 4), POWER_OFF])
    assert machine.ready.wait(PATIENCE_S)
    assert machine.ended_by is GuestEnd.POWER_OFF
    runs = cast("Any", machine.platform).vcpus[0].runs
    assert MAGIC in [run.data for run in runs]


def test_when_one_vcpu_ends_the_guest_the_others_leave_it_too(start: Start) -> None:
    machine: list[Machine] = []
    started = threading.Event()

    def other_is_inside() -> bool:
        started.wait(PATIENCE_S)
        return bool(cast("Any", machine[0].platform).vcpus[1].inside.wait(PATIENCE_S))

    machine.append(start([other_is_inside, RESET], []))
    started.set()
    assert machine[0].ready.wait(PATIENCE_S)
    vcpus = machine[0].vcpus
    with vcpus._changed:
        assert vcpus._changed.wait_for(lambda: not vcpus._active, PATIENCE_S)


def test_a_receiver_that_starts_up_leaves_the_disk_to_the_guest_that_still_runs(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    source = DiskImage(path, read_only=False)
    source.lock()
    machine = start([], disks=(DiskImage(path, read_only=False),))
    assert machine.state is RunState.RUNNING
    source.close()


def test_a_guest_whose_disk_is_in_other_hands_when_it_comes_back_waits_for_it(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    image = DiskImage(path, read_only=False)
    image.lock()
    machine = start([], disks=(image,))
    machine.begin_handover()
    machine.devices.leave_disks()
    thief = DiskImage(path, read_only=False)
    thief.lock()
    with pytest.raises(UserError, match="in use by another guest"):
        machine.take_back()
    assert machine.state is RunState.PAUSED
    with pytest.raises(UserError, match="in use by another guest"):
        machine.resume()
    assert machine.state is RunState.PAUSED
    thief.close()
    assert machine.resume()


@pytest.mark.parametrize("taken_before", [False, True])
def test_a_guest_takes_all_its_disks_or_no_more(start: Start, tmp_path: Path, *, taken_before: bool) -> None:
    paths = tmp_path / "first", tmp_path / "second"
    for path in paths:
        path.write_bytes(bytes(4096))
    images = tuple(DiskImage(path, read_only=False) for path in paths)
    machine = start([], disks=images)
    thief, other = DiskImage(paths[1], read_only=False), DiskImage(paths[0], read_only=False)
    thief.lock()
    if taken_before:
        images[0].lock()
    with pytest.raises(UserError, match=f"{paths[1]} is in use by another guest"):
        machine.devices.take_disks()
    with pytest.raises(UserError, match="in use") if taken_before else nullcontext():
        other.lock()
    thief.close()
    other.close()
    machine.devices.take_disks()


def test_only_who_knows_that_disks_are_not_in_it_has_a_guest_with_a_writable_one_saved(
    start: Start, tmp_path: Path
) -> None:
    """Whoever consents gets past this, to the next reason why not."""
    writable, read_only = tmp_path / "writable", tmp_path / "read-only"
    for path in (writable, read_only):
        path.write_bytes(bytes(4096))
    for path, consents, reason in (
        (writable, False, f"not hold what is on the disks of guest g .{writable}.; .*--without-disks"),
        (writable, True, "only played"),
        (read_only, False, "only played"),
    ):
        image = DiskImage(path, read_only=path is read_only)
        image.lock()
        guest = Guest("g", Parameters())
        guest.attach(start([], disks=(image,)), Launched(0, bytes(48)))
        with pytest.raises(UserError, match=reason):
            guest.snapshot(tmp_path / "snapshot", without_disks=consents)
        image.unlock()
