"""dump-guest-memory: a guest's memory and registers as a vmcore, in the layout of QEMU's dumps, for gdb and readelf.

The guest stands still meanwhile, so that all of the file is of one moment. What its policy keeps from its host is
refused, unless ciphertext is wanted. Memory that is nothing but zeros becomes holes in the file.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sealift.errors import SealiftError, UserError, sentence
from sealift.sev.policy import Policy
from sealift.vmm.debug.cpu import CpuRegisters, read_cpu
from sealift.vmm.debug.elfcore import Load, head
from sealift.vmm.debug.memory import Ciphertext, DebugForbiddenError, MemoryReader, debug_memory
from sealift.vmm.debug.walker import PagingMode, Walker
from sealift.vmm.machine import Machine
from sealift.vmm.wholefile import WholeFile
from sealift.wire.platform import DEBUG_WINDOW

_CHUNK: Final = DEBUG_WINDOW
"""Bytes read and written at once: what one request to the platform can bring."""


class DumpStatus(enum.Enum):
    """QEMU's DumpStatus (qapi/dump.json)."""

    NONE = "none"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DumpWishes:
    """What is to be dumped.

    Attributes:
        path: where to; an absolute path.
        raw: ciphertext of private memory, whatever the policy says.
        paging: program headers say where memory is to the first vCPU with paging, not where it is physically.
        begin: of guest physical memory, only what is here and above; None for all.
        length: and so many bytes of it at most; None for all.

    Raises:
        UserError: they contradict each other.
    """

    path: Path
    raw: bool = False
    paging: bool = False
    begin: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise UserError(f"{self.path} is no absolute path, and the VMM does not know what it is relative to")
        if (self.begin is None) is not (self.length is None):
            raise UserError("'begin' and 'length' go together: where guest physical memory begins, and how much of it")
        if self.length is not None and self.length <= 0:
            raise UserError("a dump of no bytes is none; 'length' is at least 1")
        if self.raw and self.paging:
            raise UserError("a raw dump is by physical addresses: in ciphertext there are no page tables to walk")

    @property
    def bounds(self) -> tuple[int, int]:
        """First physical address, and the one behind the last."""
        begin, length = self.begin, self.length
        return (0, 1 << 64) if begin is None or length is None else (begin, begin + length)


@dataclass(frozen=True, slots=True)
class DumpInfo:
    """How a dump goes: bytes of memory, why it failed, and what a reader has to know of the file."""

    status: DumpStatus = DumpStatus.NONE
    completed: int = 0
    total: int = 0
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of RAM, and where it is in the file (from where memory begins)."""

    gpa: int
    length: int
    offset: int


class Dump:
    """One dump; `ended` is called when it is over, however that was."""

    def __init__(self, machine: Machine, wishes: DumpWishes, ended: Callable[[DumpInfo], None]) -> None:
        self.wishes = wishes
        self._machine = machine
        self._ended = ended
        self._cancelled = threading.Event()
        self._over = threading.Event()
        self._ranges = tuple(_ranges(machine, wishes))
        self._total = sum(each.length for each in self._ranges)
        self._completed = 0
        self._status = DumpStatus.ACTIVE
        self._error: str | None = None
        self._note: str | None = None
        if not self._ranges:
            raise UserError("there is no guest RAM between 'begin' and its end, so there is nothing to dump")

    @property
    def info(self) -> DumpInfo:
        """How it goes."""
        return DumpInfo(self._status, self._completed, self._total, self._error, self._note)

    @property
    def active(self) -> bool:
        """Whether it still goes on."""
        return not self._over.is_set()

    def cancel(self) -> None:
        """Give it up soon."""
        self._cancelled.set()

    def wait(self) -> DumpInfo:
        """How it ended, once it has."""
        self._over.wait()
        return self.info

    def run(self) -> None:
        """Do it; what goes wrong is in `info`."""
        ended = DumpStatus.FAILED
        try:
            self._write()
            ended = DumpStatus.COMPLETED
        except SealiftError as error:
            self._error = sentence(error)
        finally:
            self._status = ended
            self._over.set()
            self._ended(self.info)

    def _write(self) -> None:
        reader = self._reader()
        file = WholeFile(self.wishes.path, "dump")
        try:
            with self._machine.stilled():
                cpus = self._registers()
                before_memory = head(tuple(self._loads(cpus)), cpus)
                file.write(before_memory)
                self._write_memory(file, reader, len(before_memory))
            file.publish()
        finally:
            file.discard()

    def _reader(self) -> MemoryReader:
        if self._machine.spec.plain:
            return debug_memory(self._machine)
        if self.wishes.raw:
            return Ciphertext(self._machine)
        # The secure processor would refuse as well, but not before it is asked for private memory.
        if self._machine.platform.status().policy & Policy.NODBG:
            raise DebugForbiddenError
        return debug_memory(self._machine)

    def _registers(self) -> tuple[CpuRegisters, ...]:
        """Those of all vCPUs; none if they are encrypted and may not be seen, which a raw dump does without."""
        try:
            return tuple(read_cpu(self._machine, index) for index in range(self._machine.vcpu_count))
        except DebugForbiddenError:
            self._note = "it holds no registers: they are encrypted (SEV-ES), and the policy forbids to decrypt them"
            return ()

    def _loads(self, cpus: tuple[CpuRegisters, ...]) -> Iterator[Load]:
        if not self.wishes.paging:
            for each in self._ranges:
                yield Load(each.gpa, each.gpa, each.length, each.offset)
            return
        paged = next((cpu for cpu in cpus if cpu.paging.mode is not PagingMode.OFF), None)
        if paged is None:
            raise UserError("no vCPU has paging on, so there are no virtual addresses; dump without 'paging'")
        for found in Walker(debug_memory(self._machine), paged.paging).mappings():
            for each in self._ranges:
                start, end = max(found.gpa, each.gpa), min(found.gpa + found.length, each.gpa + each.length)
                if start < end:
                    address = found.address + start - found.gpa
                    yield Load(address, start, end - start, each.offset + start - each.gpa)

    def _write_memory(self, file: WholeFile, reader: MemoryReader, memory_at: int) -> None:
        """Read a chunk while the one before it is written: the secure processor and the file have each its own work."""
        buffers = [memoryview(bytearray(_CHUNK)) for _ in range(2)]

        def read(chunk: _Range, number: int) -> memoryview:
            part = buffers[number % 2][: chunk.length]
            reader.read_into(chunk.gpa, part)
            return part

        with ThreadPoolExecutor(1, thread_name_prefix="dump-reader") as ahead:
            chunks = list(self._chunks())
            coming = ahead.submit(read, chunks[0], 0)
            for number, chunk in enumerate(chunks):
                part = coming.result()
                if self._cancelled.is_set():
                    raise UserError("the dump was cancelled")
                if number + 1 < len(chunks):
                    coming = ahead.submit(read, chunks[number + 1], number + 1)
                if _has_content(part):
                    file.skip(memory_at + chunk.offset)
                    file.write(part)
                self._completed += chunk.length
        file.skip(memory_at + self._total)

    def _chunks(self) -> Iterator[_Range]:
        for each in self._ranges:
            for done in range(0, each.length, _CHUNK):
                yield _Range(each.gpa + done, min(_CHUNK, each.length - done), each.offset + done)


def _ranges(machine: Machine, wishes: DumpWishes) -> Iterator[_Range]:
    """RAM that is wanted, with its place in the file."""
    first, behind = wishes.bounds
    offset = 0
    for block in machine.layout.blocks:
        start, end = max(block.gpa, first), min(block.gpa + block.size, behind)
        if start < end:
            yield _Range(start, end - start, offset)
            offset += end - start


def _has_content(part: memoryview) -> bool:
    whole = len(part) & ~7
    return bool(np.frombuffer(part[:whole], np.uint64).any() or any(part[whole:]))
