"""The machine: a platform's VM with its devices, vCPUs and run state.

::

    vCPU threads ──exits──► Machine ──► port bus ──► serial, pause port
                               │
                               ├── run state (prelaunch, running, paused, …) ──► listeners
                               └── page encryption bitmap, as the guest's hypercalls told it
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sealift.address import PAGE_SHIFT, RamLayout
from sealift.errors import GuestError, SealiftError, sentence
from sealift.pageset import PageSet
from sealift.vmm.console import Console
from sealift.vmm.devices.bus import PortBus
from sealift.vmm.devices.pause import PausePort
from sealift.vmm.devices.serial import INPUT_LIMIT, Serial
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState, RunStateMachine
from sealift.vmm.vcpu import VcpuSet
from sealift.wire.platform import Fault, Kick

_CONSOLE_LINES_IN_REPORT = 10

_STARTABLE = frozenset({RunState.PRELAUNCH, RunState.INMIGRATE, RunState.PAUSED})
_MOVABLE = frozenset({RunState.RUNNING, RunState.PAUSED})
_HANDED_OVER = frozenset({RunState.FINISH_MIGRATE})


class Machine:
    """One VM.

    Who orders it to run or stop has to be alone while looking, ordering the vCPUs and changing the state: users and
    a migration do so at the same time. vCPUs that fail do not wait for that: whoever stops them waits for them.

    `listener` is called with every new run state, from whatever thread changed it.

    Attributes:
        memory: the shared plane.
        shared_pages: the page encryption bitmap's complement: pages in shared state.
        report: why the guest ended, when it ended by a fault.
    """

    def __init__(
        self,
        platform: Platform,
        layout: RamLayout,
        vcpus: int,
        console: Console,
        listener: Callable[[RunState], None],
    ) -> None:
        self.platform = platform
        self.layout = layout
        self.vcpu_count = vcpus
        self.console = console
        self.report: str | None = None
        self.memory = platform.create_vm(layout, vcpus)
        self.shared_pages = PageSet(layout.pages)
        self._states_lock = threading.Lock()
        self._device_lock = threading.Lock()
        self._order_lock = threading.Lock()
        self._before_handover = RunState.RUNNING
        self._held_input = bytearray()
        self.serial = Serial(console.transmit)
        self.bus = PortBus((self.serial, PausePort(self._rest)))
        self._run_state = RunStateMachine(RunState.PRELAUNCH, listener)
        links = [platform.create_vcpu(index) for index in range(vcpus)]
        self.vcpus = VcpuSet(links, lambda index: platform.do(Kick(index)), self)

    # --- run state -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The run state."""
        return self._run_state.state

    def resume(self) -> bool:
        """Run a guest that only waits for this; whether it runs now."""
        with self._order_lock:
            if self._run_state.move_from(_STARTABLE, RunState.RUNNING):
                self.vcpus.resume()
            return self.state is RunState.RUNNING

    def pause(self, state: RunState = RunState.PAUSED) -> None:
        """Stop the guest in `state`, if it runs; returns when every vCPU is out of it."""
        with self._order_lock:
            if self.state is RunState.RUNNING:
                self._stop_vcpus()
                self._run_state.move_from(frozenset({RunState.RUNNING}), state)

    def arrive_paused(self) -> None:
        """A guest that came here as a migration stays paused, as it was."""
        with self._order_lock:
            self._run_state.move(RunState.PAUSED)

    # A migration's part: from `begin_handover` on the machine is its own until `take_back` or `handed_over`.

    def begin_handover(self) -> RunState:
        """Stop the guest so that it can leave; the state it was in.

        Raises:
            GuestError: it is in no state to be moved.
        """
        with self._order_lock:
            self._before_handover = self.state
            if self._before_handover in _MOVABLE:
                self._stop_vcpus()  # meanwhile it may come to its end
            with self._device_lock:  # who types now has either done so before, or is held back
                leaves = self._run_state.move_from(_MOVABLE, RunState.FINISH_MIGRATE)
            if not leaves:
                raise GuestError(f"the guest is {self.state.value} and cannot be moved any more")
            return self._before_handover

    def take_back(self) -> None:
        """The guest stays: let it go on as it was, if it was stopped to leave."""
        with self._order_lock:
            with self._device_lock:
                stays = self._run_state.move_from(_HANDED_OVER, self._before_handover)
                self.serial.receive(bytes(self._held_input))
                self._held_input.clear()
            if stays and self._before_handover is RunState.RUNNING:
                self.vcpus.resume()

    def handed_over(self) -> None:
        """The guest runs elsewhere, whatever has become of what is left here."""
        with self._order_lock:
            self._run_state.move_from(_HANDED_OVER, RunState.POSTMIGRATE)

    def _stop_vcpus(self) -> None:
        self.vcpus.pause()
        self.console.flush()

    def close(self) -> None:
        """End the platform and the vCPU threads; the guest is gone."""
        self._run_state.move(RunState.SHUTDOWN)
        self.platform.close()
        self.vcpus.end()
        self.console.flush()

    def type_in(self, data: bytes) -> None:
        """Input for the console; what comes while the guest is handed over waits until it is known whether it stays."""
        with self._device_lock:
            if self.state is RunState.FINISH_MIGRATE:
                self._held_input += data[: INPUT_LIMIT - len(self._held_input)]
            else:
                self.serial.receive(data)

    # --- exits (see sealift.vmm.vcpu.ExitHandler) ------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:
        """Data for a port input."""
        with self._device_lock:
            return self.bus.read(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """A port output."""
        with self._device_lock:
            self.bus.write(port, size, value)

    def mmio_read(self, address: int, size: int) -> int:  # noqa: ARG002  # nothing is there
        """Data for a read from where there is no RAM: as from a bus that nobody drives."""
        return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A write to where there is no RAM: lost."""

    def page_state_changed(self, gpa: int, pages: int, *, encrypted: bool) -> None:
        """The guest declared pages private or shared, and the platform acted on it."""
        offset = self.layout.offset(gpa, pages << PAGE_SHIFT)
        if offset is None:
            return  # the platform refuses such calls: nothing has changed
        with self._states_lock:
            if encrypted:
                self.shared_pages.remove_range(offset >> PAGE_SHIFT, pages)
            else:
                self.shared_pages.add_range(offset >> PAGE_SHIFT, pages)

    def shared_pages_now(self) -> PageSet:
        """A copy of the set of shared pages."""
        with self._states_lock:
            return self.shared_pages.copy()

    def replace_shared_pages(self, pages: PageSet) -> None:
        """Take over the page states that a migration brought."""
        with self._states_lock:
            self.shared_pages = pages

    def fault(self, vcpu: int, fault: Fault) -> None:
        """The guest cannot go on."""
        self.console.flush()
        registers = self.platform.registers(vcpu)
        tail = "\n".join(f"  | {line}" for line in self.console.tail(_CONSOLE_LINES_IN_REPORT))
        self.report = (
            f"vCPU {vcpu} stopped: {fault.reason} (rip {fault.rip:#x}, address {fault.address:#x}, "
            f"cr3 {registers.cr3:#x}, rsp {registers.general[7]:#x})\nlast console lines:\n{tail}"
        )
        self.vcpus.pause()
        self._run_state.move_from(_MOVABLE, RunState.GUEST_PANICKED)

    def failed(self, vcpu: int, error: SealiftError) -> None:
        """The platform refused to run a vCPU, or is gone."""
        if self.state is RunState.SHUTDOWN:
            return  # gone because `close` ended it
        self.report = f"vCPU {vcpu} cannot run: {sentence(error)}"
        self.vcpus.pause()
        self._run_state.move(RunState.INTERNAL_ERROR)

    def _rest(self, seconds: float) -> None:
        # Called by the pause port under the device lock, which a resting vCPU must not keep from the others.
        self._device_lock.release()
        try:
            self.vcpus.rest(seconds)
        finally:
            self._device_lock.acquire()
