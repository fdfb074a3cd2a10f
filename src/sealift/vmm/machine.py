"""The machine: a platform's VM with its devices, vCPUs and run state.

::

    vCPU threads ──exits──► Machine ──► port and MMIO buses ──► devices (`sealift.vmm.devices.sets`)
                               │
                               ├── run state (prelaunch, running, paused, …) ──► listeners
                               └── page encryption bitmap, as the guest's hypercalls told it
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto

from sealift.address import PAGE_SHIFT, RamLayout
from sealift.errors import GuestError, SealiftError, UserError, sentence
from sealift.launch.machine import MachineType
from sealift.pageset import PageSet, Span
from sealift.vmm.console import Console
from sealift.vmm.cpu_throttle import CpuThrottle
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.devices.dma import SharedDma
from sealift.vmm.devices.serial import INPUT_LIMIT
from sealift.vmm.devices.sets import DeviceSet, bare_devices, check_disks, microvm_devices
from sealift.vmm.lastwords import PanicEar, fault_report, has_panicked, panic_report
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.platform import ANY_CPU, CpuShape, Platform
from sealift.vmm.registers import register_lines
from sealift.vmm.runstate import RunState, RunStateMachine
from sealift.vmm.vcpu import VcpuSet
from sealift.wire.platform import Fault, Kick

_STARTABLE = frozenset({RunState.PRELAUNCH, RunState.INMIGRATE, RunState.PAUSED})
_MOVABLE = frozenset({RunState.RUNNING, RunState.PAUSED})
_HANDED_OVER = frozenset({RunState.FINISH_MIGRATE})


class GuestEnd(Enum):
    """How a guest ends its run of its own will."""

    POWER_OFF = auto()
    RESET = auto()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a machine is made of.

    Attributes:
        disks: opened images, which become the machine's: it locks and closes them.
        cpu: what the guest must see; by default the best that the host can give.
        es: whether the guest's policy asks for SEV-ES.
        plain: whether the guest is not confidential at all.

    Raises:
        UserError: the machine type has no room for so many disks.
    """

    layout: RamLayout
    vcpus: int
    type: MachineType = MachineType.BARE
    disks: tuple[DiskImage, ...] = ()
    cpu: CpuShape = ANY_CPU
    es: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        check_disks(self.disks, self.type)


class Machine:
    """One VM.

    Who orders it to run or stop has to be alone while looking, ordering the vCPUs and changing the state: users and
    a migration do so at the same time. vCPUs that fail do not wait for that: whoever stops them waits for them.

    `listener` is called with every new run state, from whatever thread changed it.

    Attributes:
        spec: what it was made of.
        memory: the shared plane.
        shared_pages: the page encryption bitmap's complement: pages in shared state.
        devices: all of them.
        throttle: slows the vCPUs, for a migration that does not converge.
        report: why the guest ended, when it ended by itself.
        ready: set when a receiver has started up, or will not: its run state tells.
        ended_by: what the guest did that ended it; None if it has not ended so.
    """

    def __init__(
        self, platform: Platform, spec: MachineSpec, console: Console, listener: Callable[[RunState], None]
    ) -> None:
        self.platform = platform
        self.spec = spec
        self.layout = spec.layout
        self.vcpu_count = spec.vcpus
        self.console = console
        self._serial_port = console.port()
        self._virtio_port = console.port()
        self._serial_ear, self._virtio_ear = PanicEar(), PanicEar()
        self.report: str | None = None
        self.ended_by: GuestEnd | None = None
        self.ready = threading.Event()
        microvm = spec.type is MachineType.MICROVM
        self.memory = platform.create_vm(
            spec.layout, spec.vcpus, spec.cpu, irqchip=microvm, es=spec.es, plain=spec.plain
        )
        self.shared_pages = PageSet.full(spec.layout.pages) if spec.plain else PageSet(spec.layout.pages)
        self._states_lock = threading.Lock()
        self._device_lock = threading.Lock()
        self._order_lock = threading.Lock()
        self._before_handover = RunState.RUNNING
        self._held_input = bytearray()
        self._awareness_due = microvm
        self.devices = self._make_devices()
        self._typed_at: Callable[[bytes], None] = self.devices.serial.receive
        self._run_state = RunStateMachine(RunState.PRELAUNCH, listener)
        try:
            links = [platform.create_vcpu(index) for index in range(spec.vcpus)]
        except BaseException:
            self.devices.close()
            raise
        self.vcpus = VcpuSet(links, lambda index: platform.do(Kick(index)), self)
        self.throttle = CpuThrottle(self.vcpus, SystemClock())

    def _make_devices(self) -> DeviceSet:
        match self.spec.type:
            case MachineType.BARE:
                return bare_devices(self)
            case MachineType.MICROVM:
                memory = SharedDma(self.memory, self._all_shared)
                return microvm_devices(self, self.platform, memory, self.spec.disks)

    def _all_shared(self, first: int, count: int) -> bool:
        with self._states_lock:
            return self.shared_pages.has_range(first, count)

    # --- run state -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """The run state."""
        return self._run_state.state

    def resume(self) -> bool:
        """Run a guest that only waits for this; whether it runs now.

        Raises:
            UserError: it waits for a disk image that somebody else has taken.
        """
        with self._order_lock:
            if self.state is RunState.PAUSED:  # a receiver that starts up has no right to them yet
                self.devices.take_disks()
            if self._run_state.move_from(_STARTABLE, RunState.RUNNING):
                self._start_vcpus()
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

    @contextmanager
    def stilled(self) -> Iterator[RunState]:
        """Neither vCPUs nor devices write to memory until the block ends; the run state, which this gives, stays.

        For looks at registers and for debug writes, which must come neither between a guest's own load and store nor
        behind a migration's last round. Not to be called by who gives orders to this machine in the block.
        """
        with self._order_lock:
            running = self.state is RunState.RUNNING
            if running:
                self._stop_vcpus()
            try:
                yield self.state
            finally:
                if running and self.state is RunState.RUNNING:
                    self._start_vcpus()

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
        """The guest stays: let it go on as it was, if it was stopped to leave.

        Raises:
            UserError: somebody took one of its disks meanwhile; the guest is paused then, and can be resumed later.
        """
        with self._order_lock:
            back_to = self._before_handover
            try:
                self.devices.take_disks()
            except UserError:
                back_to = RunState.PAUSED
                raise
            finally:
                self._return_to(back_to)

    def _return_to(self, state: RunState) -> None:
        """End a handover that did not take place."""
        with self._device_lock:
            stays = self._run_state.move_from(_HANDED_OVER, state)
            self._typed_at(bytes(self._held_input))
            self._held_input.clear()
        if stays and state is RunState.RUNNING:
            self._start_vcpus()

    def handed_over(self) -> None:
        """The guest runs elsewhere, whatever has become of what is left here."""
        with self._order_lock:
            self._run_state.move_from(_HANDED_OVER, RunState.POSTMIGRATE)

    def _start_vcpus(self) -> None:
        self.devices.resume()
        self.vcpus.resume()

    def _stop_vcpus(self) -> None:
        """Nothing writes to guest memory any more when this returns: neither vCPUs nor devices."""
        self.vcpus.pause()
        self.devices.quiesce()
        self.console.flush()

    def close(self) -> None:
        """End the platform and the vCPU threads; the guest is gone."""
        self._run_state.move(RunState.SHUTDOWN)
        self.ready.set()
        self.throttle.set(0)
        # Memory stays mapped for as long as anything here may still look at it.
        self.platform.end()
        self.vcpus.end()
        with self._device_lock:
            self.devices.close()
        self.platform.close()
        self.console.flush()

    def type_in(self, data: bytes) -> None:
        """Input for the console; what comes while the guest is handed over waits until it is known whether it stays."""
        with self._device_lock:
            if self.state is RunState.FINISH_MIGRATE:
                self._held_input += data[: INPUT_LIMIT - len(self._held_input)]
            elif self.state is not RunState.SHUTDOWN:
                self._typed_at(data)

    @property
    def typed_at_virtio(self) -> bool:
        """Whether typed input goes to the virtio console, where the guest printed last."""
        return self._typed_at != self.devices.serial.receive

    def type_at_virtio(self) -> None:
        """Take over that it does (after a migration)."""
        if self.devices.console is not None:
            self._typed_at = self.devices.console.receive

    # --- exits (see sealift.vmm.vcpu.ExitHandler) ------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:
        """Data for a port input."""
        with self._device_lock:
            return self.devices.ports.read(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """A port output."""
        if self._awareness_due and port in self.devices.serial.ports:
            self._check_awareness()
        with self._device_lock:
            self.devices.ports.write(port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        """Data for a memory-mapped read."""
        if self._awareness_due:
            self._check_awareness()
        with self._device_lock:
            return self.devices.mmio.read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A memory-mapped write."""
        with self._device_lock:
            self.devices.mmio.write(address, size, value)

    def _check_awareness(self) -> None:
        """A kernel that reaches for its first device has long found out that its memory is encrypted, or never will.

        One that does not know would run, but share nothing with any device.
        """
        self._awareness_due = False
        if not self.platform.status().aware:
            self._end_by_guest(
                RunState.GUEST_PANICKED,
                None,
                "its kernel takes no notice of memory encryption (it never read MSR SEV_STATUS), so it cannot run as a "
                "confidential guest; use one with CONFIG_AMD_MEM_ENCRYPT",
            )

    # --- what devices ask for (see sealift.vmm.devices.sets.Surroundings) ------------------------------------------

    def transmit(self, byte: int) -> None:
        """The serial port sends a byte; what is typed goes to where the guest printed last."""
        self._typed_at = self.devices.serial.receive
        self._serial_port.transmit(byte)
        if self._serial_ear.hear(bytes((byte,))):
            self._panicked()

    def transmit_all(self, data: bytes) -> None:
        """The virtio console sends bytes."""
        if self.devices.console is not None:
            self._typed_at = self.devices.console.receive
        self._virtio_port.write(data)
        if self._virtio_ear.hear(data):
            self._panicked()

    def rest(self, seconds: float) -> None:
        """Keep the calling vCPU idle, which holds the device lock: it must not keep the others from it."""
        self._device_lock.release()
        try:
            self.vcpus.rest(seconds)
        finally:
            self._device_lock.acquire()

    def started_up(self) -> None:
        """A receiver's start-up code is done."""
        self.ready.set()

    def reset(self) -> None:
        """The guest resets the machine; Linux does so after a panic, too."""
        if has_panicked(self.console):
            self._panicked()
            return
        self._end_by_guest(
            RunState.SHUTDOWN,
            GuestEnd.RESET,
            "it asked for a reboot, which would be another launch; launch it again, and its owner attests it anew",
        )

    def _panicked(self) -> None:
        self._end_by_guest(RunState.GUEST_PANICKED, None, panic_report(self.console))

    def power_off(self) -> None:
        """The guest switches the machine off."""
        self._end_by_guest(RunState.SHUTDOWN, GuestEnd.POWER_OFF, "it switched itself off")

    def _end_by_guest(self, state: RunState, end: GuestEnd | None, report: str) -> None:
        """The guest comes to its end by what one of its vCPUs does; that vCPU's thread is here."""
        if end is not None:
            self._serial_port.write(f"\r\nsealift: the guest has ended: {report}\r\n".encode())
        self.console.flush()
        self.report, self.ended_by = report, end
        self.vcpus.pause()
        self._run_state.move_from(_MOVABLE, state)
        self.ready.set()

    # --- other exits ---------------------------------------------------------------------------------------------

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

    def shared_among(self, first: int, count: int) -> PageSet:
        """Those of some pages that are in shared state, numbered from `Span.covering(first, count).base`."""
        span = Span.covering(first, count)
        found = span.of_range(first, count)
        with self._states_lock:
            found &= self.shared_pages.part(span)
        return found

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
        self.report = fault_report(self.console, vcpu, fault, self._registers_at(vcpu, fault))
        self.vcpus.pause()
        self._run_state.move_from(_MOVABLE, RunState.GUEST_PANICKED)
        self.ready.set()

    def _registers_at(self, vcpu: int, fault: Fault) -> list[str]:
        """What can be said of those that a vCPU stopped with."""
        if not fault.registers_kept:
            return ["none: the processor keeps none over a triple fault"]
        if self.spec.es:
            return ["encrypted (SEV-ES)"]
        return [*register_lines(self.platform.registers(vcpu)), f"faulting address {fault.address:#x}"]

    def cannot_start(self, report: str) -> None:
        """A guest that waits to be started never will be."""
        self.report = report
        if self._run_state.move_from(frozenset({RunState.PRELAUNCH}), RunState.INTERNAL_ERROR):
            self.ready.set()

    def failed(self, vcpu: int, error: SealiftError) -> None:
        """The platform refused to run a vCPU, or is gone."""
        if self.state is RunState.SHUTDOWN:
            return  # gone because `close` ended it
        self.report = f"vCPU {vcpu} cannot run: {sentence(error)}"
        self.vcpus.pause()
        self._run_state.move(RunState.INTERNAL_ERROR)
        self.ready.set()
