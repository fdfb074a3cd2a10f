"""What an engine is: the one small interface that the platform process and guest memory use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import WriteLogs
from sealift.wire.platform import Fault, Halt, Interrupted, PortIn, PortOut, Registers


@dataclass(frozen=True, slots=True)
class Hypercall:
    """VMMCALL: number and arguments; the guest goes on once `Vcpu.complete_hypercall` gave it a result."""

    number: int
    arguments: tuple[int, int, int, int]


Outcome: TypeAlias = Hypercall | Halt | Fault | Interrupted
"""Why a vCPU left guest mode."""

PortIo: TypeAlias = Callable[[PortIn | PortOut], int]
"""Carries out a port access, on the vCPU's thread; returns what a PortIn reads."""


class Vcpu(Protocol):
    """One virtual CPU. All but `kick` are called by one thread at a time."""

    def run(self, port_io: PortIo) -> Outcome:
        """Enter the guest until something but a port access needs the outside."""

    def complete_hypercall(self, result: int) -> None:
        """Give the last Hypercall its result (rax)."""

    def kick(self) -> None:
        """Make the current or else the next `run` return Interrupted soon; safe from any thread."""

    def registers(self) -> Registers:
        """General and control registers."""

    def set_registers(self, registers: Registers) -> None:
        """Load general and control registers."""

    def save(self) -> bytes:
        """The whole architectural state, engine-independent in meaning, for sealed migration state."""

    def restore(self, state: bytes) -> None:
        """Load `save`'s state into a fresh vCPU.

        Raises:
            StreamError: it does not parse.
        """


class Engine(Protocol):
    """Makes vCPUs over one guest's memory; also memory's `Windows`."""

    name: str

    def create_vcpu(self, index: int) -> Vcpu:
        """A fresh vCPU with initial APIC id `index`; replaces an earlier one of that index."""

    def quiesced(self) -> AbstractContextManager[None]:
        """Hold every vCPU out of guest mode; re-entrant."""

    def take_logs(self) -> WriteLogs:
        """Get and clear the write logs with a TLB flush."""

    def remap(self, pages: PageSet, shared: PageSet) -> None:
        """Make the windows follow changed page states."""
