"""The launch image of a confidential guest: what is loaded, in which order, and what the measurement must be.

A recipe is all the owner has to know to recompute the launch digest. The order of the pieces is fixed, since
LAUNCH_UPDATE_DATA hashes contents in call order and no addresses:

    bare     start-up code | start-up table | kernel segments by address | payload [| VMSA of every vCPU]
    microvm  start-up code | start-up table | kernel | boot_params | command line | ACPI tables | initrd

Where pieces go is in the start-up table and in boot_params, which are among them; so addresses are measured after
all. A large one is several pieces, read one by one as they are loaded.
A *receiver image* is the start-up code and table alone: it waits for a guest to arrive.
The vCPUs' registers of an SEV-ES guest are measured behind all that (LAUNCH_UPDATE_VMSA).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sealift.address import PAGE_SIZE, Gpa, RamLayout, page_aligned
from sealift.errors import UserError
from sealift.launch import bare, bzimage, linux
from sealift.launch.areas import ANCHOR, GHCBS, Area, StartupAreas, areas_of
from sealift.launch.entry import EntryState
from sealift.launch.machine import MachineType
from sealift.launch.pieces import Content, Load, Piece, Plan
from sealift.launch.startup import StartupTable
from sealift.sev.policy import Policy

_NOWHERE = Area(Gpa(0), 0)


@dataclass(frozen=True, slots=True)
class GuestRecipe:
    """Everything that decides what is loaded into a guest.

    Attributes:
        startup: the start-up code (``sealift.guest.programs.startup_blob()``).
        layout: the guest's RAM.
        vcpus: how many.
        handler_digest: digest of the migration handler the platform must run, 32 bytes.
        kernel: an ELF file or, on the machine microvm, a bzImage; None makes a receiver image.
        payload: what a kernel of our own finds through the start-up table.
        command_line: printable ASCII, at most 1024 bytes; for Linux, as many as its kernel takes.
        machine: what the guest runs on.
        initrd: what Linux unpacks as its first file system.
        es: whether the guest's policy asks for SEV-ES.

    Raises:
        UserError: it does not fit together; the message gives the sizes.
        StreamError: `startup` is not a start-up image.
    """

    startup: bytes
    layout: RamLayout
    vcpus: int
    handler_digest: bytes
    kernel: bytes | None = None
    payload: Content = b""
    command_line: str = ""
    machine: MachineType = MachineType.BARE
    initrd: Content = b""
    es: bool = False

    def __post_init__(self) -> None:
        _check_start_up_area(self, self.areas())
        _check_kind(self)
        self.plan()

    def receiver(self) -> GuestRecipe:
        """The image a migration target launches to receive this guest."""
        return replace(self, kernel=None, payload=b"", command_line="", initrd=b"")

    def under(self, policy: Policy) -> GuestRecipe:
        """The recipe of the same guest with this policy, which decides about SEV-ES.

        Raises:
            UserError: the guest cannot have SEV-ES.
        """
        return replace(self, es=Policy.ES in policy)

    def areas(self) -> StartupAreas:
        """The areas the start-up code names."""
        return areas_of(self.startup)

    def table(self) -> StartupTable:
        """The start-up table."""
        return self.plan().table

    def plan(self) -> Plan:
        """Where kernel and company go."""
        base, areas = _empty_table(self), self.areas()
        with_es = (base.ghcbs,) if self.es else ()
        start_up = (_code_area(self), areas.secret, areas.table, areas.mailbox, *with_es)
        if self.kernel is None:
            return Plan(base)
        match self.machine:
            case MachineType.BARE:
                table = replace(base, command_line=self.command_line)
                return bare.plan(table, start_up, self.kernel, self.payload)
            case MachineType.MICROVM:
                return linux.plan(base, start_up, self.kernel, self.initrd, self.command_line)

    def pieces(self) -> Iterator[Piece]:
        """What to load, in the order in which it is measured.

        Raises:
            UserError: payload or initrd can no longer be read.
        """
        plan = self.plan()
        start_up = (
            Load("start-up code", _code_area(self).gpa, self.startup),
            Load("start-up table", self.areas().table.gpa, plan.table.encode()),
        )
        for load in (*start_up, *plan.loads):
            yield from load.pieces()

    def launch_digest(self) -> bytes:
        """SHA-256 over all pieces, and over the VMSAs of an SEV-ES guest behind them."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece.data)
        for vmsa in self.vmsas():
            digest.update(vmsa)
        return digest.digest()

    def vmsas(self) -> Iterator[bytes]:
        """The VMSA of every vCPU in order, if the guest is one with SEV-ES."""
        for vcpu in range(self.vcpus if self.es else 0):
            if (entry := self.entry(vcpu)) is not None:
                yield entry.vmsa()

    def entry(self, vcpu: int) -> EntryState | None:
        """The registers `vcpu` starts with, the same for all: each reads its number from CPUID.

        Returns:
            None for a vCPU that is not started: it waits for another one's SIPI, or for a guest to arrive. With
            SEV-ES all are: nobody could start them later.

        Raises:
            ValueError: there is no such vCPU.
        """
        if not 0 <= vcpu < self.vcpus:
            raise ValueError(f"the guest has vCPUs 0 to {self.vcpus - 1}, not {vcpu}")
        if vcpu and not self.es and (self.kernel is None or self.machine is MachineType.MICROVM):
            return None
        areas = self.areas()
        return EntryState(rip=areas.entry, cr3=areas.bootstrap_cr3)

    def kernel_version(self) -> str:
        """The version that a Linux kernel gives itself, for people; empty for other kernels."""
        if self.kernel is None or self.machine is not MachineType.MICROVM:
            return ""
        return bzimage.parse(self.kernel).version


def machine_for(kernel: bytes) -> MachineType:
    """The machine that a kernel file runs on."""
    return MachineType.MICROVM if bzimage.is_bzimage(kernel) else MachineType.BARE


def _check_kind(recipe: GuestRecipe) -> None:
    """Kernel, machine and what belongs to the kernel must be of one kind."""
    if recipe.es and recipe.machine is MachineType.MICROVM:
        raise UserError(
            "Linux runs on the engine kvm alone, whose host would see the registers of an SEV-ES guest: "
            "take a policy without es for it, or one of our own kernels"
        )
    if recipe.kernel is None:
        if len(recipe.payload) or len(recipe.initrd) or recipe.command_line:
            raise UserError("a payload, an initrd or a command line needs a kernel that reads it")
        return
    needed = machine_for(recipe.kernel)
    if recipe.machine is not needed:
        kind = "a Linux bzImage" if needed is MachineType.MICROVM else "not a bzImage"
        raise UserError(f"the kernel is {kind} and so needs the machine {needed.value}, not {recipe.machine.value}")
    if recipe.machine is MachineType.MICROVM and len(recipe.payload):
        raise UserError("Linux takes no payload; give it its files with --initrd")
    if recipe.machine is MachineType.BARE and len(recipe.initrd):
        raise UserError("only Linux takes an initrd; give this kernel its file with --payload")


def _empty_table(recipe: GuestRecipe) -> StartupTable:
    """The start-up table of a receiver: as far as it does not depend on the kernel."""
    areas = recipe.areas()
    return StartupTable(
        handler_digest=recipe.handler_digest,
        vcpus=recipe.vcpus,
        layout=recipe.layout,
        entry=Gpa(0),
        secret=areas.secret,
        mailbox=areas.mailbox,
        payload=_NOWHERE,
        page_tables=_NOWHERE,
        stacks=_NOWHERE,
        free=Gpa(0),
        boot_params=Gpa(0),
        ghcbs=_ghcbs(recipe),
    )


def _code_area(recipe: GuestRecipe) -> Area:
    return Area(Gpa(ANCHOR - len(recipe.startup)), len(recipe.startup))


def _ghcbs(recipe: GuestRecipe) -> Area:
    return Area(GHCBS, recipe.vcpus * PAGE_SIZE) if recipe.es else _NOWHERE


def _check_start_up_area(recipe: GuestRecipe, areas: StartupAreas) -> None:
    """Everything the start-up code names must be memory, and none of it the code itself."""
    code = _code_area(recipe)
    if code.gpa < 0 or not page_aligned(code.gpa):
        raise UserError(f"start-up code of {code.size} bytes is not whole pages below {ANCHOR:#x}")
    if areas.entry < code.gpa or areas.bootstrap_cr3 < code.gpa:
        raise UserError(f"the start-up code starts or has its page tables below {code.gpa:#x}")
    named = {"code": code, "secret block": areas.secret, "table": areas.table, "mailbox": areas.mailbox}
    if recipe.es:
        named["GHCBs"] = _ghcbs(recipe)
    for name, area in named.items():
        if recipe.layout.offset(area.gpa, area.size) is None:
            raise UserError(f"memory of {recipe.layout.size >> 10} KiB is too small: the start-up {name} is at {area}")
        if area is not code and area.overlaps(code):
            raise UserError(f"the start-up {name} at {area} overlaps the start-up code at {code}")
