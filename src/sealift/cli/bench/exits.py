"""What an exit costs: a guest's port accesses, answered by a VMM that has nothing to do for them.

Three things in turn, since machines have moods, each time in fresh processes, so that a scheduler that puts both ends
on one processor does not do so for all of them:

- a bare ping-pong between two processes, the least that two processes can do over a socket;
- a vCPU's exchange between two processes, without a guest;
- a real guest in a real platform process, whose vCPU thread in the VMM handles every exit.

What the last takes beyond the second is the engine's and the vCPU threads' part.
"""

from __future__ import annotations

import statistics
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.cli.bench.echo import link_round_trip, socket_round_trip, timed
from sealift.cli.bench.migrate import Say
from sealift.cli.places import Host
from sealift.cli.scratch import Scratch
from sealift.errors import GuestError, LostError, SealiftError, sentence
from sealift.sev.policy import DEFAULT_POLICY
from sealift.vmm.platform import Platform
from sealift.vmm.vcpu import VcpuSet
from sealift.wire import platform as wire

_LAYOUT: Final = RamLayout((RamBlock("ram", Gpa(0), 2 << 20),))
_PML4, _PDPT, _PD, _CODE = (PAGE_SIZE * number for number in range(1, 5))
_PRESENT, _WRITABLE, _LARGE = 1, 2, 1 << 7
_CODE_BYTES: Final = bytes.fromhex("e680 ffc9 75fa f4")
"""``again: out 0x80, al; dec ecx; jnz again; hlt``"""
_RCX: Final = 2  # among `Registers.general`
_LONG_MODE: Final = {"cr0": 0x8005_0033, "cr4": 0x620, "efer": 0xD00}
_PATIENCE_S: Final = 60.0


class ExitsResult(msgspec.Struct, frozen=True):
    """Seconds of one round trip: medians over the runs, and the runs themselves.

    `ratio` is a vCPU's exchange to the bare ping-pong: below one it is quicker than the socket alone. `guest_ratio` is
    the same for exits of the guest, with what its engine takes.
    """

    exits: int
    engine: str
    socket_s: float
    link_s: float
    guest_s: float
    ratio: float
    guest_ratio: float
    socket_runs: list[float]
    link_runs: list[float]
    guest_runs: list[float]


def measure_exits(scratch: Scratch, engine: str, exits: int, runs: int, say: Say) -> ExitsResult:
    """Make `exits` round trips of each kind, `runs` times; those of a guest on `engine`.

    Raises:
        SealiftError: the guest could not be started, or came to an end it did not ask for.
    """
    bare, link, guest, found = [], [], [], ""
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: bare ping-pong")
        bare.append(socket_round_trip(exits))
        say(f"run {run} of {runs}: a vCPU's exchange")
        link.append(link_round_trip(exits))
        say(f"run {run} of {runs}: exits of a guest")
        with port_guest(scratch, engine) as machine:
            found = machine.engine
            guest.append(timed(machine.access, exits))
    medians = [statistics.median(times) for times in (bare, link, guest)]
    return ExitsResult(
        exits=exits,
        engine=found,
        socket_s=medians[0],
        link_s=medians[1],
        guest_s=medians[2],
        ratio=medians[1] / medians[0],
        guest_ratio=medians[2] / medians[0],
        socket_runs=bare,
        link_runs=link,
        guest_runs=guest,
    )


class PortGuest:
    """A guest that writes to a port as often as its rcx says, then halts (see `sealift.vmm.vcpu.ExitHandler`)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._error: SealiftError | None = None
        memory = platform.create_vm(_LAYOUT, 1)
        link = platform.create_vcpu(0)
        info = platform.info()
        self.engine = info.engine
        self._cbit = 1 << info.cbit
        platform.do(wire.LaunchStart(int(DEFAULT_POLICY), b"", b""))
        for gpa, content in self._image():
            memory.place(gpa, content.ljust(PAGE_SIZE, b"\0"))
            platform.do(wire.LaunchUpdateData(gpa, PAGE_SIZE))
        platform.request(wire.LaunchMeasure(), wire.Measurement)
        platform.do(wire.LaunchFinish())
        self.vcpus = VcpuSet([link], lambda index: platform.do(wire.Kick(index)), self)

    def _image(self) -> Iterator[tuple[int, bytes]]:
        """Tables that map all memory one to one, and the code."""
        rights = self._cbit | _PRESENT | _WRITABLE
        for table, entry in ((_PML4, _PDPT | rights), (_PDPT, _PD | rights), (_PD, _LARGE | rights)):
            yield table, struct.pack("<Q", entry)
        yield _CODE, _CODE_BYTES

    def access(self, count: int) -> None:
        """Let it access its port so often."""
        general = [0] * 16
        general[_RCX] = count
        registers = wire.Registers(tuple(general), rip=_CODE, rflags=2, cr2=0, cr3=_PML4 | self._cbit, **_LONG_MODE)
        self.vcpus.pause()
        self._platform.do(wire.SetRegisters(0, registers))
        self.vcpus.set_halted(frozenset())
        self.vcpus.resume()
        if not self.vcpus.wait_all_halted(_PATIENCE_S):
            raise LostError("the guest did not come to its end")
        if self._error is not None:
            raise self._error

    # --- exits ---------------------------------------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:  # noqa: ARG002  # no port has anything to say
        """Data for a port input."""
        return 0

    def port_out(self, port: int, size: int, value: int) -> None:
        """A port output: nothing to do."""

    def mmio_read(self, address: int, size: int) -> int:  # noqa: ARG002  # nothing is there
        """Data for a read from where there is no RAM."""
        return 0

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A write to where there is no RAM."""

    def page_state_changed(self, gpa: int, pages: int, *, encrypted: bool) -> None:
        """The guest declared pages private or shared."""

    def fault(self, vcpu: int, fault: wire.Fault) -> None:
        """The guest cannot go on."""
        self._error = GuestError(f"vCPU {vcpu} stopped: {fault.reason} (rip {fault.rip:#x})")

    def failed(self, vcpu: int, error: SealiftError) -> None:
        """The platform refused to run it, or is gone."""
        self._error = GuestError(f"vCPU {vcpu} cannot run: {sentence(error)}")


@contextmanager
def port_guest(scratch: Scratch, engine: str) -> Iterator[PortGuest]:
    """A guest on `engine` that has been launched."""
    host = Host(scratch.path / "host")
    platform = Platform.start(host.identity, scratch.path / "manufacturer", engine=engine)
    try:
        guest = PortGuest(platform)
        try:
            yield guest
        finally:
            platform.close()
            guest.vcpus.end()
    finally:
        platform.close()
