"""vCPU threads: each blocks in Run on its own link, handles the exit under the device lock, and runs on."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol, assert_never

from sealift.errors import SealiftError
from sealift.wire import platform as wire
from sealift.wire.exits import VmmEnd
from sealift.wire.failure import from_failed


class ExitHandler(Protocol):
    """What the machine does about exits; called on the vCPU's thread."""

    def port_in(self, port: int, size: int) -> int:
        """Data for a port input."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """A port output."""

    def mmio_read(self, address: int, size: int) -> int:
        """Data for a read from where there is no RAM."""

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A write to where there is no RAM."""

    def page_state_changed(self, gpa: int, pages: int, *, encrypted: bool) -> None:
        """The guest declared pages private or shared."""

    def fault(self, vcpu: int, fault: wire.Fault) -> None:
        """The guest cannot go on."""

    def failed(self, vcpu: int, error: SealiftError) -> None:
        """The platform refused to run it, or is gone."""


class VcpuSet:
    """All vCPUs of a VM: start, pause, resume, end. Pausing returns only when every vCPU is out of the guest.

    `kick` makes one vCPU leave guest mode.
    """

    def __init__(
        self,
        links: list[VmmEnd],
        kick: Callable[[int], None],
        handler: ExitHandler,
    ) -> None:
        self._kick = kick
        self._handler = handler
        self._changed = threading.Condition()
        self._permitted = False
        self._held = False
        self._ended = False
        self._active: set[int] = set()
        self._halted: set[int] = set()
        # One for each, so that no two threads count in the same.
        self._exits: list[Counter[type[wire.Message]]] = [Counter() for _ in links]
        self._threads = [
            threading.Thread(target=self._serve, args=(index, link), name=f"vcpu-{index}", daemon=True)
            for index, link in enumerate(links)
        ]
        for thread in self._threads:
            thread.start()

    def resume(self) -> None:
        """Let the vCPUs run."""
        with self._changed:
            self._permitted = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Get every vCPU out of the guest, with its port input (if any) completed; returns when all are."""
        with self._changed:
            self._permitted = False
            self._changed.notify_all()
            if threading.current_thread() in self._threads:
                # Called from an exit: this vCPU is out, and must wait neither for itself nor for others like it.
                for index in self._active:
                    if self._threads[index] is not threading.current_thread():
                        self._kick(index)
                return
            while self._active:
                for index in self._active:
                    self._kick(index)
                # A kick that falls before its Run is remembered by the platform; the wait is only a second belt.
                self._changed.wait(0.1)

    def hold(self) -> None:
        """Get every vCPU out of guest mode soon and let none enter, whoever resumes them; does not wait."""
        with self._changed:
            self._held = True
            for index in self._active:
                self._kick(index)

    def release(self) -> None:
        """Take `hold` back."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def rest(self, seconds: float) -> None:
        """Keep the calling vCPU idle, until `pause` or `end` at the latest."""
        with self._changed:
            self._changed.wait_for(lambda: not self._permitted or self._ended, seconds)

    @property
    def exits(self) -> Counter[type[wire.Message]]:
        """How often the vCPUs have left the guest so far, by the message that came of it."""
        return sum((Counter(counted) for counted in self._exits), Counter())

    @property
    def thread_ids(self) -> list[int]:
        """The kernel's ids of the threads that run the vCPUs, in order."""
        return [thread.native_id or 0 for thread in self._threads]

    @property
    def halted(self) -> frozenset[int]:
        """VCPUs that executed HLT; without interrupts nothing wakes them."""
        with self._changed:
            return frozenset(self._halted)

    def set_halted(self, halted: frozenset[int]) -> None:
        """Take over which vCPUs are halted (after a migration)."""
        with self._changed:
            self._halted = set(halted)
            self._changed.notify_all()

    def wait_all_halted(self, timeout_s: float) -> bool:
        """Wait until every vCPU executed HLT; False when that takes too long."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._halted) == len(self._threads), timeout_s)

    def end(self) -> None:
        """End the threads; the links must be closed (by ending the platform) for those inside a Run."""
        with self._changed:
            self._ended = True
            self._permitted = False
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _serve(self, index: int, link: VmmEnd) -> None:
        with contextlib.closing(link):
            while self._admitted(index):
                try:
                    self._run_until_parked(index, link)
                except SealiftError as error:
                    self._leave(index)
                    if not self._ended:
                        self._handler.failed(index, error)
                    return

    def _admitted(self, index: int) -> bool:
        with self._changed:
            self._active.discard(index)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or (self._allowed() and index not in self._halted))
            if self._ended:
                return False
            self._active.add(index)
            return True

    def _allowed(self) -> bool:
        """Whether vCPUs may be in guest mode; the caller holds the lock."""
        return self._permitted and not self._held

    def _leave(self, index: int) -> None:
        with self._changed:
            self._active.discard(index)
            self._halted.add(index)
            self._changed.notify_all()

    def _run_until_parked(self, index: int, link: VmmEnd) -> None:
        data = 0
        exits = self._exits[index]
        while True:
            with self._changed:
                stop = not self._allowed()
            # Even when the VM is to stop, Run is due: it completes a port access that is underway.
            link.send(wire.Run(data, immediate_exit=stop))
            left = link.receive()
            exits[type(left)] += 1
            data = 0
            match left:
                case wire.PortIn():
                    data = self._handler.port_in(left.port, left.size)
                    continue
                case wire.PortOut():
                    self._handler.port_out(left.port, left.size, left.value)
                    continue
                case wire.MmioRead():
                    data = self._handler.mmio_read(left.address, left.size)
                    continue
                case wire.MmioWrite():
                    self._handler.mmio_write(left.address, left.size, left.value)
                    continue
                case _:
                    self._left(index, left)
            if self._must_park(index):
                return

    def _left(
        self, index: int, left: wire.PageStateChange | wire.Halt | wire.Fault | wire.Interrupted | wire.Failed
    ) -> None:
        """A vCPU is out of guest mode."""
        match left:
            case wire.PageStateChange():
                self._handler.page_state_changed(left.gpa, left.pages, encrypted=left.encrypted)
            case wire.Interrupted():
                pass
            case wire.Halt():
                self._halt(index)
            case wire.Fault():
                self._handler.fault(index, left)
                self._halt(index)
            case wire.Failed():
                raise from_failed(left)
            case _:
                assert_never(left)

    def _halt(self, index: int) -> None:
        with self._changed:
            self._halted.add(index)

    def _must_park(self, index: int) -> bool:
        with self._changed:
            return not self._allowed() or self._ended or index in self._halted
