"""The portable engine: the vCPUs of one guest, their common logs, and whose turn it is."""

from __future__ import annotations

from contextlib import AbstractContextManager

import msgspec

from sealift.cpu.description import CpuDescription
from sealift.errors import RefusedError, StreamError, UserError, sentence
from sealift.pageset import PageSet, Span
from sealift.silicon.engines import cpuid
from sealift.silicon.engines.given import PORTABLE_CBIT, UNICORN, portable_cpu
from sealift.silicon.engines.interface import GuestSays, VmShape
from sealift.silicon.engines.unicorn.encrypted import EncryptedVcpu
from sealift.silicon.engines.unicorn.turn import Turn
from sealift.silicon.engines.unicorn.vcpu import SEV_ENABLED, UnicornVcpu
from sealift.silicon.engines.unicorn.walker import Walker
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.packed import unpack


class UnicornEngine:
    """Emulates `vcpus` vCPUs over `memory` (see `sealift.silicon.engines.interface.Engine`)."""

    name = UNICORN
    runs_limit = None

    cbit = PORTABLE_CBIT
    says = GuestSays(aware=True, ready=True)
    """It cannot see what a guest asks of MSRs; its guests are the platform's own."""

    def __init__(self, memory: GuestMemory, shape: VmShape) -> None:
        if shape.irqchip:
            raise UserError("the portable engine has no interrupt controllers; this guest needs KVM")
        if shape.cbit not in {None, PORTABLE_CBIT}:
            raise UserError(_OTHER_CBIT.format(shape.cbit))
        self._limit = _limit_of(shape)
        self.cpu = b"" if self._limit is None else msgspec.msgpack.encode(self._limit, order="deterministic")
        self.memory = memory
        self.turn = Turn()
        self.encrypted_log = PageSet(memory.layout.pages)
        self.plain_log = PageSet(memory.layout.pages)
        self.walker = Walker(memory, None if shape.plain else PORTABLE_CBIT, self._table_written)
        self._count = shape.vcpus
        self._es, self._plain = shape.es, shape.plain
        self.waits_for_pages = not shape.es  # an exception that is delivered to a missing stack could not be restarted
        self._vcpus: dict[int, UnicornVcpu] = {}
        memory.attach(self)

    def create_vcpu(self, index: int) -> UnicornVcpu:
        """A fresh vCPU with initial APIC id `index`; replaces an earlier one of that index."""
        leaves = cpuid.leaves(vcpu=index, vcpus=self._count, cbit=PORTABLE_CBIT, es=self._es, plain=self._plain)
        if self._limit is not None:
            leaves = cpuid.limited(leaves, self._limit)
        if self._es:
            vcpu: UnicornVcpu = EncryptedVcpu(self, index, leaves, PORTABLE_CBIT)
        else:
            vcpu = UnicornVcpu(self, leaves, sev_status=0 if self._plain else SEV_ENABLED)
        with self.turn.held():
            self._vcpus[index] = vcpu
        return vcpu

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""
        return self.turn.held()

    def take_logs(self, span: Span) -> WriteLogs:
        """Get and clear the write logs; cached writable translations are dropped, so that later writes log anew."""
        for vcpu in self._vcpus.values():
            vcpu.request_flush()
        return WriteLogs(self.encrypted_log.part(span).take(), self.plain_log.part(span).take())

    def remap(self, span: Span, changed: PageSet, shared: PageSet) -> None:  # noqa: ARG002  # the fill hook reads states
        """Drop what is cached, code included; the next fill follows the new page states."""
        for vcpu in self._vcpus.values():
            vcpu.request_code_flush()

    # --- there is nothing but memory and vCPUs -------------------------------------------------------------------

    def save(self) -> bytes:
        """Nothing."""
        return b""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state."""
        if state:
            raise StreamError("the portable engine has no state of its own")

    def interrupt(self, gsi: int) -> int:
        """There are no interrupt lines."""
        raise RefusedError(f"there is no interrupt line {gsi}: this machine has no interrupt controllers")

    def save_chips(self) -> bytes:
        """Nothing."""
        return b""

    def restore_chips(self, state: bytes) -> None:
        """Load `save_chips`'s state."""
        if state:
            raise StreamError("this machine has no interrupt controllers whose state could be loaded")

    def _table_written(self, page: int) -> None:
        self.encrypted_log.mark(page)


_OTHER_CBIT = f"the guest's C-bit is bit {{}}; here it is bit {PORTABLE_CBIT}"


def _limit_of(shape: VmShape) -> CpuDescription | None:
    """The CPU that a guest brings or is to have, if that is not all that the engine gives.

    Raises:
        StreamError: what it brings is no description of a CPU.
        UserError: it is more than the engine gives.
    """
    limit = unpack(shape.cpu, CpuDescription, "the description of the guest's CPU") if shape.cpu else shape.limit
    if limit is not None:
        cpuid.check_given(limit, portable_cpu())
    return limit


class UnicornFactory:
    """Makes portable engines, on any host (see `sealift.silicon.engines.interface.EngineFactory`)."""

    name = UnicornEngine.name
    cbit = PORTABLE_CBIT
    hides_registers = True
    runs_plain = True

    def host_cpu(self) -> CpuDescription:
        """The CPU it emulates."""
        return portable_cpu()

    def judge(self, shape: VmShape) -> tuple[Obstacle, ...]:
        """This engine has one CPU, the same on every host, of which a guest may have less."""
        obstacles = []
        if shape.cbit not in {None, PORTABLE_CBIT}:
            obstacles.append(Obstacle(Code.CBIT, _OTHER_CBIT.format(shape.cbit)))
        try:
            _limit_of(shape)
        except (StreamError, UserError) as error:
            obstacles.append(Obstacle(Code.CPU, sentence(error)))
        return tuple(obstacles)

    def make(self, memory: GuestMemory, shape: VmShape) -> UnicornEngine:
        """An engine for one guest."""
        return UnicornEngine(memory, shape)
