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
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.receiving import Introduction
from sealift.vmm.platform import CpuShape, Platform
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Disk
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
        notify: takes sentences for the user.
    """

    platform: Callable[[], Platform]
    owner: OwnerService
    startup: bytes
    console: Callable[[], Console]
    run_state: Callable[[RunState], None]
    disks: Callable[[], tuple[DiskImage, ...]] = tuple
    token_path: Path | None = None
    notify: Callable[[str], None] = lambda _: None


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
        _check_same_disks(disks, hardware.disks)
        cpu = CpuShape(hardware.cbit, hardware.cpu)
        kind = _machine_type(hardware.machine)
        spec = MachineSpec(introduction.layout, hello.vcpus, kind, disks, cpu, es)
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


def _check_same_disks(here: tuple[DiskImage, ...], there: tuple[Disk, ...]) -> None:
    """Every disk of the guest needs an image here that looks the same to it."""
    if len(here) != len(there):
        raise UserError(
            f"the guest has {len(there)} disk(s), and this target was given {len(here)}; give it the same images "
            "with --disk"
        )
    for image, disk in zip(here, there, strict=True):
        if (image.sectors, image.read_only) != (disk.sectors, disk.read_only):
            raise UserError(
                f"the disk image {image.path} has {image.sectors} sectors and is {_access(image.read_only)}; the "
                f"guest's disk has {disk.sectors} and is {_access(disk.read_only)}"
            )


def _access(read_only: bool) -> str:  # noqa: FBT001  # what is said of it
    return "read-only" if read_only else "writable"
