"""qapi/dump.json, and of qapi/machine.json what writes guest memory to files."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Final

import msgspec

from sealift.vmm.debug.dump import DumpStatus, DumpWishes
from sealift.vmm.debug.save import save_physical, save_virtual
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.events import DumpQueryResult
from sealift.vmm.qmp.message import QmpError
from sealift.vmm.qmp.table import Command, NoArguments, Runs

_FILE_PREFIX: Final = "file:"

_Unsigned64 = Annotated[int, msgspec.Meta(ge=0)]


class DumpGuestMemoryFormat(enum.Enum):
    """QEMU's DumpGuestMemoryFormat, as far as it exists here."""

    ELF = "elf"


class DumpArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """QEMU's arguments of dump-guest-memory; with `x_sealift_raw` ciphertext is written of private memory."""

    paging: bool
    protocol: str
    detach: bool = False
    begin: _Unsigned64 | None = None
    length: _Unsigned64 | None = None
    format: DumpGuestMemoryFormat = DumpGuestMemoryFormat.ELF
    x_sealift_raw: bool = False


class DumpGuestMemoryCapability(msgspec.Struct, frozen=True):
    """QEMU's DumpGuestMemoryCapability."""

    formats: tuple[DumpGuestMemoryFormat, ...]


class MemsaveArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """QEMU's arguments of memsave: a virtual address, a length in bytes, a file, and whose address it is."""

    val: _Unsigned64
    size: _Unsigned64
    filename: str
    cpu_index: _Unsigned64 = 0


class PmemsaveArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's arguments of pmemsave: a physical address, a length in bytes, a file."""

    val: _Unsigned64
    size: _Unsigned64
    filename: str


def dump_guest_memory(guest: Guest, arguments: DumpArguments) -> None:
    """Write a vmcore; with `detach`, query-dump and DUMP_COMPLETED tell how it goes."""
    if not arguments.protocol.startswith(_FILE_PREFIX):
        raise QmpError("Parameter 'protocol' expects a protocol that starts with 'file:'")
    path = Path(arguments.protocol.removeprefix(_FILE_PREFIX))
    wishes = DumpWishes(path, arguments.x_sealift_raw, arguments.paging, arguments.begin, arguments.length)
    dump = guest.dump(wishes)
    if arguments.detach:
        return
    ended = dump.wait()
    if ended.status is DumpStatus.FAILED:
        raise QmpError(ended.error or "")


def query_dump(guest: Guest, _: NoArguments) -> DumpQueryResult:
    """The last dump, if there was any."""
    return DumpQueryResult.of(guest.dump_info())


def query_capability(_: Guest, __: NoArguments) -> DumpGuestMemoryCapability:
    """The formats there are."""
    return DumpGuestMemoryCapability(tuple(DumpGuestMemoryFormat))


def cancel_dump(guest: Guest, _: NoArguments) -> None:
    """Give up the dump that is underway; with none, nothing happens."""
    guest.cancel_dump()


def memsave(guest: Guest, arguments: MemsaveArguments) -> None:
    """Save virtual memory as one vCPU has it; the guest runs on."""
    machine = guest.machine
    if arguments.cpu_index >= machine.vcpu_count:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    save_virtual(machine, arguments.cpu_index, arguments.val, arguments.size, Path(arguments.filename))


def pmemsave(guest: Guest, arguments: PmemsaveArguments) -> None:
    """Save physical memory; the guest runs on."""
    save_physical(guest.machine, arguments.val, arguments.size, Path(arguments.filename))


COMMANDS = (
    Command("dump-guest-memory", DumpArguments, dump_guest_memory, Runs.IN_THREAD),
    Command("query-dump", NoArguments, query_dump),
    Command("query-dump-guest-memory-capability", NoArguments, query_capability),
    Command("x-sealift-cancel-dump", NoArguments, cancel_dump),
    Command("memsave", MemsaveArguments, memsave, Runs.IN_THREAD),
    Command("pmemsave", PmemsaveArguments, pmemsave, Runs.IN_THREAD),
)
