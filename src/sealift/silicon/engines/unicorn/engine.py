"""The portable engine: the vCPUs of one guest, their common logs, and whose turn it is."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sealift.pageset import PageSet
from sealift.silicon.engines import cpuid
from sealift.silicon.engines.unicorn.turn import Turn
from sealift.silicon.engines.unicorn.vcpu import UnicornVcpu
from sealift.silicon.engines.unicorn.walker import Walker
from sealift.silicon.memory.guest_memory import GuestMemory, WriteLogs

CBIT = 47
"""Position of the C-bit, as on EPYC 7001 and 7002; addresses above it do not exist for guests."""


class UnicornEngine:
    """Emulates `vcpus` vCPUs over `memory` (see `sealift.silicon.engines.interface.Engine`)."""

    name = "unicorn"

    def __init__(self, memory: GuestMemory, vcpus: int) -> None:
        self.memory = memory
        self.turn = Turn()
        self.encrypted_log = PageSet(memory.layout.pages)
        self.plain_log = PageSet(memory.layout.pages)
        self.walker = Walker(memory, CBIT, self._table_written)
        self._count = vcpus
        self._vcpus: dict[int, UnicornVcpu] = {}
        memory.attach(self)

    def create_vcpu(self, index: int) -> UnicornVcpu:
        """A fresh vCPU with initial APIC id `index`; replaces an earlier one of that index."""
        vcpu = UnicornVcpu(self, cpuid.leaves(vcpu=index, vcpus=self._count, cbit=CBIT))
        with self.turn.held():
            self._vcpus[index] = vcpu
        return vcpu

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""
        return self.turn.held()

    def take_logs(self) -> WriteLogs:
        """Get and clear the write logs; cached writable translations are dropped, so that later writes log anew."""
        for vcpu in self._vcpus.values():
            vcpu.request_flush()
        return WriteLogs(self.encrypted_log.take(), self.plain_log.take())

    def remap(self, pages: PageSet, shared: PageSet) -> None:  # noqa: ARG002  # the fill hook reads memory's states
        """Drop what is cached, code included; the next fill follows the new page states."""
        for vcpu in self._vcpus.values():
            vcpu.request_code_flush()

    def _table_written(self, page: int) -> None:
        self.encrypted_log.mark(page)
