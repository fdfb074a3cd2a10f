"""What goes over a vCPU's own link (`sealift.wire.exits`): entering the guest, and why it was left."""

from __future__ import annotations

from typing import TypeAlias

from sealift.wire.platform.message import Failed, Message


class Run(Message, frozen=True):
    """Enter the guest, or go on after a port or MMIO access, which `data` completes.

    With `immediate_exit` the vCPU leaves as soon as the instruction underway, if any, is complete.
    """

    data: int = 0
    immediate_exit: bool = False


class PortOut(Message, frozen=True):
    """The guest writes `value` (`size` bytes) to an I/O port; the next Run completes the instruction."""

    port: int
    size: int
    value: int


class PortIn(Message, frozen=True):
    """The guest reads `size` bytes from an I/O port; the next Run brings them."""

    port: int
    size: int


class MmioRead(Message, frozen=True):
    """The guest reads `size` bytes at a GPA where there is no RAM; the next Run brings them."""

    address: int
    size: int


class MmioWrite(Message, frozen=True):
    """The guest writes `value` (`size` bytes) to a GPA where there is no RAM; the next Run completes it."""

    address: int
    size: int
    value: int


class PageStateChange(Message, frozen=True):
    """KVM_HC_MAP_GPA_RANGE has been carried out: `pages` from `gpa` are now private (encrypted) or shared."""

    gpa: int
    pages: int
    encrypted: bool


class Halt(Message, frozen=True):
    """HLT; another Run goes on behind it."""


class Fault(Message, frozen=True):
    """The guest cannot go on: an exception it has no handler for (or a triple fault).

    `registers_kept` is false if the vCPU's registers are not those it stopped with; then `rip` and `address` are 0.
    """

    reason: str
    rip: int
    address: int
    error_code: int
    registers_kept: bool = True


class Interrupted(Message, frozen=True):
    """The vCPU was kicked, or the Run asked for an immediate exit."""


Exit: TypeAlias = PortOut | PortIn | MmioRead | MmioWrite | PageStateChange | Halt | Fault | Interrupted | Failed
