"""Interrupt controllers, timer and clock of a VM: KVM plays them, the VMM owns them, so their state is no secret."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from sealift.errors import StreamError
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.kernel import ask, ask_wide, fetch, give
from sealift.silicon.engines.kvm.state import load
from sealift.wire.packed import unpack

_STATE_VERSION: Final = 1
_CHIPS: Final = (0, 1, 2)
"""Master PIC, slave PIC, I/O APIC."""
GSIS: Final = 24
"""Pins of the I/O APIC."""
_TSS_ADDRESS: Final = 0xFFFB_D000
"""Three pages that KVM on Intel wants for itself, below the top of 4 GiB: never RAM."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """KVM's structures as they are, little-endian."""

    version: int
    irqchips: list[bytes]
    pit: bytes
    clock: bytes


class Chips:
    """What a VM has in the kernel beside vCPUs; made before the first of these."""

    def __init__(self, vm: int) -> None:
        self._vm = vm
        self._interrupts: dict[int, int] = {}
        ask_wide(vm, abi.SET_TSS_ADDR, _TSS_ADDRESS)
        ask(vm, abi.CREATE_IRQCHIP)
        # Port 0x61, by which Linux calibrates its clocks, belongs to the timer.
        give(vm, abi.CREATE_PIT2, abi.PitConfig(flags=abi.PIT_SPEAKER_DUMMY))

    def interrupt(self, gsi: int) -> int:
        """A descriptor of an eventfd that raises an edge on an interrupt line; the same for every call."""
        if gsi not in self._interrupts:
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._interrupts[gsi] = event
            give(self._vm, abi.IRQFD, abi.Irqfd(fd=event, gsi=gsi))
        return self._interrupts[gsi]

    def close(self) -> None:
        """Let go of the interrupt lines' descriptors."""
        for event in self._interrupts.values():
            os.close(event)
        self._interrupts.clear()

    def save(self) -> bytes:
        """State, for a migration stream; vCPUs are out of guest mode."""
        chips = []
        for chip in _CHIPS:
            state = abi.Irqchip(chip_id=chip)
            give(self._vm, abi.GET_IRQCHIP, state)
            chips.append(bytes(state))
        pit, clock = fetch(self._vm, abi.GET_PIT2, abi.PitState2), fetch(self._vm, abi.GET_CLOCK, abi.ClockData)
        return msgspec.msgpack.encode(_State(_STATE_VERSION, chips, bytes(pit), bytes(clock)))

    def restore(self, data: bytes) -> None:
        """Load `save`'s state. The clock goes on from where it was: two hosts' real times may be hours apart.

        Raises:
            StreamError: it does not parse, or KVM refuses it.
        """
        state = unpack(data, _State, "the interrupt controllers' state")
        if state.version != _STATE_VERSION or len(state.irqchips) != len(_CHIPS):
            raise StreamError(f"the interrupt controllers' state is not of version {_STATE_VERSION}")
        for number, chip in enumerate(state.irqchips):
            if chip[:4] != number.to_bytes(4, "little"):
                raise StreamError("the interrupt controllers' state names them in another order")
            load(self._vm, abi.SET_IRQCHIP, abi.Irqchip, chip, "an interrupt controller's state")
        load(self._vm, abi.SET_PIT2, abi.PitState2, state.pit, "the timer's state")
        if len(state.clock) != len(bytes(abi.ClockData())):
            raise StreamError("the clock's state has another size")
        clock = abi.ClockData.from_buffer_copy(state.clock)
        clock.flags = 0
        load(self._vm, abi.SET_CLOCK, abi.ClockData, bytes(clock), "the clock's state")
