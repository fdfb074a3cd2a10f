"""What a driver has set up, from one reset to the next, and how a model gets its work from it.

::

    reset (0) ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK: chains are taken and completed
                                              │
              the driver breaks a rule ───────┴──► NEEDS_RESET: nothing is done until the driver resets the device
              the driver gives up ───────────────► FAILED: likewise

Everything is guarded by one condition, `changed`: vCPUs hold it for a register access, a model's own thread for taking
and completing a chain, nobody for I/O. A chain that is completed after a reset is dropped, so a reset need not wait.
"""

from __future__ import annotations

import threading
from typing import Final

from sealift.errors import GuestError, sentence
from sealift.vmm.devices.interface import DeviceMemory, Interrupt
from sealift.vmm.devices.virtio.queue import Chain, Virtqueue
from sealift.vmm.memory import Buffer

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
_DRIVERS_BITS: Final = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED
_STATUS_BITS: Final = _DRIVERS_BITS | NEEDS_RESET
_NEEDS: Final = {FEATURES_OK: ACKNOWLEDGE | DRIVER, DRIVER_OK: FEATURES_OK}
"""What must be set before, or together with it."""

USED_BUFFER, CONFIG_CHANGE = 1, 2
"""Bits of the interrupt status."""

INDIRECT_DESC: Final = 1 << 28
VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33
REQUIRED: Final = VERSION_1 | ACCESS_PLATFORM
"""A driver must accept both.

ACCESS_PLATFORM says that the device does not see memory as the CPU does. Only then does Linux use its DMA API for
virtio, which in a confidential guest puts rings and bounce buffers (swiotlb) into pages that are shared with the host.
A driver that refuses it would hand over addresses of private pages, so it is better told so at once.
"""


class DriverLink:
    """The device's end of the agreement with a driver.

    Attributes:
        changed: guards everything here; notified when there may be work, and when work is done.
        queues: the virtqueues.
        offered: feature bits of the device.
        features: what the driver accepted; valid once FEATURES_OK is set.
        status: the device status.
        interrupt_status: causes that the driver has not acknowledged.
        complaint: why the device needs a reset, for those who look for the reason.
    """

    def __init__(
        self, memory: DeviceMemory, interrupt: Interrupt, features: int, queues: int, chain_limit: int
    ) -> None:
        self.changed = threading.Condition()
        self.queues = tuple(Virtqueue(memory, chain_limit) for _ in range(queues))
        self.offered = features | INDIRECT_DESC | REQUIRED
        self.features = self.status = self.interrupt_status = 0
        self.complaint: str | None = None
        self._interrupt = interrupt
        self._underway = 0
        self._paused = False

    @property
    def live(self) -> bool:
        """Whether the driver is at work and has made no mistake."""
        return self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK

    # --- the model's side (it holds `changed`) ---------------------------------------------------------------------

    def take(self, index: int) -> Chain | None:
        """The next chain of a queue, to be completed or refused; None while there is nothing to do."""
        queue = self.queues[index]
        if self._paused or not queue.ready or not self.live:
            return None
        try:
            chain = queue.pop()
        except GuestError as error:
            self.fail(sentence(error))
            return None
        if chain is not None:
            self._underway += 1
        return chain

    def complete(self, chain: Chain, data: Buffer = b"") -> None:
        """Give a chain back, its buffers filled with `data`."""
        if not self._settle(chain):
            return
        try:
            wanted = chain.queue.push(chain, data)
        except GuestError as error:
            self.fail(sentence(error))
        else:
            if wanted:
                self._signal(USED_BUFFER)

    def refuse(self, chain: Chain, reason: str) -> None:
        """A chain makes no sense to the model."""
        if self._settle(chain):
            self.fail(reason)

    def _settle(self, chain: Chain) -> bool:
        """It is not underway any more; whether its driver still waits for it."""
        self._underway -= 1
        self.changed.notify_all()
        return self.live and chain.epoch == chain.queue.epoch

    def fail(self, reason: str) -> None:
        """Do nothing more until the driver resets the device."""
        self.complaint = reason
        self.status |= NEEDS_RESET
        if self.status & DRIVER_OK:
            self._signal(CONFIG_CHANGE)

    def _signal(self, cause: int) -> None:
        self.interrupt_status |= cause
        self._interrupt()

    # --- the driver's side (the transport holds `changed`) ---------------------------------------------------------

    def write_status(self, value: int) -> None:
        """The driver takes a step; one that is not its turn sets nothing, and 0 is a reset."""
        if value == 0:
            self._reset()
            return
        wanted = self.status | value & _DRIVERS_BITS
        if not self._acceptable():
            wanted &= ~FEATURES_OK | self.status
        for bit, before in _NEEDS.items():
            if wanted & before != before:
                wanted &= ~bit | self.status
        self.status = wanted

    def accept(self, features: int) -> None:
        """The driver chooses features; too late once both agreed."""
        if not self.status & FEATURES_OK:
            self.features = features

    def _acceptable(self) -> bool:
        return self.features & REQUIRED == REQUIRED and not self.features & ~self.offered

    def start_queue(self, queue: Virtqueue) -> None:
        """The driver declares a queue ready."""
        try:
            queue.start()
        except GuestError as error:
            self.fail(sentence(error))

    def _reset(self) -> None:
        self.features = self.status = self.interrupt_status = 0
        self.complaint = None
        for queue in self.queues:
            queue.reset()

    # --- the machine's side ----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more chains, and wait for those that were."""
        with self.changed:
            self._paused = True
            self.changed.wait_for(lambda: not self._underway)

    def go_on(self) -> None:
        """Take chains again; an interrupt that was not acknowledged may have been lost."""
        with self.changed:
            self._paused = False
            self.changed.notify_all()
            if self.interrupt_status:
                self._interrupt()

    def plausible(self) -> bool:
        """Whether a driver can have brought status and features there."""
        status = self.status
        if status & ~_STATUS_BITS or self.interrupt_status & ~(USED_BUFFER | CONFIG_CHANGE) or self.features >> 64:
            return False
        ordered = all(status & before == before for bit, before in _NEEDS.items() if status & bit)
        return ordered and (not status & FEATURES_OK or self._acceptable())
