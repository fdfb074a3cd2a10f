"""Where a guest comes to: the host it lands on, and the machine that is made for it there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sealift.errors import StreamError, UserError
from sealift.launch.machine import MachineType
from sealift.vmm.console import Console
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.machine import Machine, MachineSpec
from sealift.vmm.migration.examining import compare_disks, memory_available
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.receiving import Introduction
from sealift.vmm.platform import CpuShape, Platform
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method
from sealift.wire.owner import OwnerService


@dataclass(frozen=True, slots=True)
class TargetHost:
    """What a target needs of the host it is on.

    Attributes:
        platform: starts a platform process.
        owner: approves receivers and releases their secrets (method mh).
        startup: the start-up code of the receiver image.
        disks: opens the images that a guest which comes here finds; the machine closes them.
        console: makes the guest's console.
        run_state: is called with every new run state of the guest.
        token_path: where to keep a token that the source did not take; None: nowhere.
        plain: whether a guest is awaited that is not confidential, and no other.
        notify: takes sentences for the user.
        memory_available: bytes that this machine could give a guest.
    """

    platform: Callable[[], Platform]
    owner: OwnerService
    startup: bytes
    console: Callable[[], Console]
    run_state: Callable[[RunState], None]
    disks: Callable[[], tuple[DiskImage, ...]] = tuple
    token_path: Path | None = None
    plain: bool = False
    notify: Callable[[str], None] = lambda _: None
    memory_available: Callable[[], int] = memory_available


def make_machine(host: TargetHost, platform: Platform, introduction: Introduction, *, es: bool) -> Machine:
    """The machine that a guest (with SEV-ES: `es`) is used to, without it; it takes over the disks it was given.

    Raises:
        StreamError: it is none that is known here.
        UserError: the disks that were given are not those of the guest.
    """
    hello, hardware = introduction.hello, introduction.hello.hardware
    with ExitStack() as undo:
        disks = host.disks()
        for disk in disks:
            undo.callback(disk.close)
        for obstacle in compare_disks(disks, hardware.disks):
            raise UserError(obstacle.sentence)
        cpu = CpuShape(hardware.cbit, hardware.cpu)
        kind = _machine_type(hardware.machine)
        plain = Method(hello.method) is Method.PLAIN
        spec = MachineSpec(introduction.layout, hello.vcpus, kind, disks, cpu, es, plain)
        machine = Machine(platform, spec, host.console(), host.run_state)
        undo.pop_all()
    return machine


def set_going(machine: Machine, restorer: Restorer) -> None:
    """A guest has come and may run: let it go on as it was."""
    if restorer.paused:
        machine.arrive_paused()
    else:
        machine.resume()


def _machine_type(name: str) -> MachineType:
    try:
        return MachineType(name)
    except ValueError:
        raise StreamError(f"the source's guest needs a machine {name!r:.40}, which is not known here") from None
