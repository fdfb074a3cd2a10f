"""Guest memory for debugging, by guest physical address: one interface, implemented once for each type of guest.

Reads let the vCPUs run on, as on silicon. Writes stop them for the moment: DBG_ENCRYPT takes whole blocks of 16 bytes,
so that a write of fewer reads the block first, and what the guest stored meanwhile would be lost. Whatever is written
counts as written for a migration that is underway.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sealift.address import PAGE_SHIFT, PAGE_SIZE, RamLayout, pages_spanned
from sealift.errors import FirmwareError, UserError
from sealift.pageset import Span
from sealift.sev.status import Status
from sealift.vmm.machine import Machine
from sealift.vmm.memory import Buffer
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire

BLOCK: Final = 16
"""Bytes of a block of AES: what the secure processor's debug commands take whole ones of."""

_UNWRITABLE: Final = frozenset(
    {RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.SHUTDOWN, RunState.INTERNAL_ERROR}
)
"""Memory is on its way, or nobody looks at it any more."""


class NotRamError(UserError):
    """There is no guest RAM at an address.

    Attributes:
        gpa: the first such address.
    """

    def __init__(self, gpa: int) -> None:
        super().__init__(f"GPA {gpa:#x} is no RAM; what is there, a device or nothing, cannot be debugged")
        self.gpa = gpa


class DebugForbiddenError(UserError):
    """The guest's policy keeps its host out."""

    def __init__(self) -> None:
        super().__init__(
            "the guest's policy forbids its host to debug it (bit 0, NODBG, is set); launch a guest that is to be "
            "debugged with a policy that has this bit clear"
        )


class View(enum.Enum):
    """Which of a page's two contents is meant; they are the same for guests that are not confidential."""

    DECLARED = enum.auto()
    """Private or shared, as the guest declared the page: for physical addresses, and mappings without C-bit."""
    PRIVATE = enum.auto()
    """Through the guest's key, whatever it declared: page tables, and mappings with C-bit."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of an access: bytes `start` to `end` of its data, which begin at `gpa`, all in one RAMBlock."""

    gpa: int
    start: int
    end: int


class MemoryReader(ABC):
    """Looks at the memory of one guest; calls may come from any thread.

    Attributes:
        layout: its RAM.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.layout: RamLayout = machine.layout

    def read(self, gpa: int, length: int, view: View = View.DECLARED) -> bytes:
        """What lies at `gpa`, `length` bytes.

        Raises:
            NotRamError: part of it is no RAM; nothing was read.
            DebugForbiddenError: the policy forbids it.
            SealiftError: the guest is not here, or not yet, or not any more.
        """
        data = bytearray(length)
        self.read_into(gpa, memoryview(data), view)
        return bytes(data)

    def read_into(self, gpa: int, destination: memoryview, view: View = View.DECLARED) -> None:
        """Fill `destination` (bytes); raises as `read`."""
        pieces = tuple(self._pieces(gpa, len(destination)))
        with _ending_is_told():
            for piece in pieces:
                self._read_piece(piece.gpa, destination[piece.start : piece.end], view)

    def _pieces(self, gpa: int, length: int) -> Iterator[_Piece]:
        """An access in parts that the debug window has room for, however their ends are rounded."""
        done = 0
        while done < length:
            at = gpa + done
            block = next((each for each in self.layout.blocks if each.gpa <= at < each.gpa + each.size), None)
            if block is None:
                raise NotRamError(at)
            window_end = at - at % wire.DEBUG_WINDOW + wire.DEBUG_WINDOW
            end = min(gpa + length, block.gpa + block.size, window_end) - gpa
            yield _Piece(at, done, end)
            done = end

    @abstractmethod
    def _read_piece(self, gpa: int, destination: memoryview, view: View) -> None:
        """A read inside one RAMBlock and one window."""


class DebugMemory(MemoryReader):
    """Debug access to the memory of one guest."""

    def write(self, gpa: int, data: Buffer, view: View = View.DECLARED) -> None:
        """Put `data` to `gpa`.

        Raises:
            NotRamError: part of it is no RAM; nothing was written.
            DebugForbiddenError: the policy forbids it.
            SealiftError: the guest is not here, or not yet, or not any more.
        """
        pieces = tuple(self._pieces(gpa, len(data)))
        with self._machine.stilled() as state, _ending_is_told():
            if state in _UNWRITABLE:
                raise UserError(f"the guest is {state.value}; its memory can be written to once it runs or is paused")
            for piece in pieces:
                self._write_piece(piece.gpa, memoryview(data)[piece.start : piece.end], view)

    @abstractmethod
    def _write_piece(self, gpa: int, data: memoryview, view: View) -> None:
        """A write inside one RAMBlock and one window; no vCPU runs."""


class PlainDebugMemory(DebugMemory):
    """That of a guest which is not confidential: copies."""

    def _read_piece(self, gpa: int, destination: memoryview, view: View) -> None:  # noqa: ARG002  # there is but one
        self._machine.memory.read_into(gpa, destination)

    def _write_piece(self, gpa: int, data: memoryview, view: View) -> None:  # noqa: ARG002  # there is but one
        memory = self._machine.memory
        memory.write(gpa, data)
        self._machine.platform.do(wire.InvalidateCode(*memory.pages_of(gpa, len(data))))


class SevDebugMemory(DebugMemory):
    """That of an SEV guest: private memory by DBG_DECRYPT and DBG_ENCRYPT, shared memory by copies."""

    def _read_piece(self, gpa: int, destination: memoryview, view: View) -> None:
        first, shared = self._shared(gpa, len(destination), view)
        if shared.all():
            self._machine.memory.read_into(gpa, destination)
        elif not shared.any():
            self._decrypt(gpa, destination)
        else:
            # Whole pages of both, then each from where it belongs: no loop over pages, however the states alternate.
            content = np.empty((2, len(shared), PAGE_SIZE), np.uint8)
            self._decrypt(first, content[0].data.cast("B"))
            self._machine.memory.read_into(first, content[1].data.cast("B"))
            content[0][shared] = content[1][shared]
            destination[:] = content[0].data.cast("B")[gpa - first :][: len(destination)]

    def _write_piece(self, gpa: int, data: memoryview, view: View) -> None:
        first, shared = self._shared(gpa, len(data), view)
        changes = np.flatnonzero(shared[1:] != shared[:-1]) + 1
        start = 0
        for end in (*(first + (change << PAGE_SHIFT) - gpa for change in changes.tolist()), len(data)):
            part = data[start:end]
            if shared[(gpa + start - first) >> PAGE_SHIFT]:
                self._machine.memory.write(gpa + start, part)
            else:
                self._encrypt(gpa + start, part)
            start = end

    def _shared(self, gpa: int, length: int, view: View) -> tuple[int, npt.NDArray[np.bool_]]:
        """The GPA of the first page that a piece touches, and of each of its pages, whether the shared one is meant."""
        count = pages_spanned(gpa, length)
        if view is View.PRIVATE:
            shared = np.zeros(count, np.bool_)
        else:
            page, _ = self._machine.memory.pages_of(gpa, length)
            base = Span.covering(page, count).base
            numbers = np.arange(page - base, page - base + count, dtype=np.uint64)
            shared = self._machine.shared_among(page, count).holds(numbers)
        return gpa & ~(PAGE_SIZE - 1), shared

    def _decrypt(self, gpa: int, destination: memoryview) -> None:
        low, high = _blocks(gpa, len(destination))
        with self._machine.platform.debug_window() as window, _refusal_is_told():
            self._machine.platform.do(wire.DbgDecrypt(low, high - low))
            destination[:] = window[gpa - low :][: len(destination)]

    def _encrypt(self, gpa: int, data: memoryview) -> None:
        """Decrypt the blocks of which `data` is only a part, put it in its place, and encrypt all of them."""
        low, high = _blocks(gpa, len(data))
        blocks = bytearray(high - low)
        view = memoryview(blocks)
        if gpa != low:
            self._decrypt(low, view[:BLOCK])
        if gpa + len(data) != high:
            self._decrypt(high - BLOCK, view[-BLOCK:])
        view[gpa - low :][: len(data)] = data
        with self._machine.platform.debug_window() as window, _refusal_is_told():
            window[: len(blocks)] = blocks
            self._machine.platform.do(wire.DbgEncrypt(low, len(blocks)))


class Ciphertext(MemoryReader):
    """What DRAM shows the host: of private pages ciphertext, whatever the policy says.

    Whoever looks keeps the guest still (`Machine.stilled`, or it is paused): a page that it declared shared in between
    would lose what it wrote there.
    """

    def _read_piece(self, gpa: int, destination: memoryview, view: View) -> None:  # noqa: ARG002  # DRAM has but one
        memory = self._machine.memory
        first, count = memory.pages_of(gpa, len(destination))
        self._machine.platform.do(wire.ReadHostView(first, count))
        memory.read_into(gpa, destination)
        # Nobody else looks for ciphertext on the shared plane, which would grow to the size of all RAM.
        span = Span.covering(first, count)
        hidden = span.of_range(first, count)
        hidden -= self._machine.shared_among(first, count)
        for start, length in hidden.runs():
            memory.mapping.remove((span.base + start) << PAGE_SHIFT, length << PAGE_SHIFT)


def debug_memory(machine: Machine) -> DebugMemory:
    """Debug access as fits the machine's guest."""
    return PlainDebugMemory(machine) if machine.spec.plain else SevDebugMemory(machine)


def _blocks(gpa: int, length: int) -> tuple[int, int]:
    """Where the blocks begin and end that a range touches; the length to be rounded counts from the first block."""
    return gpa & ~(BLOCK - 1), (gpa + length + BLOCK - 1) & ~(BLOCK - 1)


@contextmanager
def _refusal_is_told() -> Iterator[None]:
    try:
        yield
    except FirmwareError as error:
        if error.status == Status.POLICY_FAILURE:
            raise DebugForbiddenError from None
        raise


@contextmanager
def _ending_is_told() -> Iterator[None]:
    """Memory is unmapped behind the back of who still looks at it when the guest ends."""
    try:
        yield
    except OSError:
        raise UserError("the guest has ended, and its memory is gone") from None
