"""The client of the platform process: one method a request, errors as exceptions of the tree."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sealift.address import RamLayout
from sealift.cpu.description import CpuDescription
from sealift.errors import InternalError, LostError
from sealift.pageset import PageSet
from sealift.vmm.handler import HandlerClient, HandlerCounts
from sealift.vmm.memory import Mapping, SharedMemory
from sealift.wire import platform as wire
from sealift.wire.channel import Channel, socket_pair
from sealift.wire.exits import LinkParts, VmmEnd, vmm_end
from sealift.wire.failure import from_failed

_EXIT_PATIENCE_S = 5.0
"""A platform process ends at once when its connection closes; longer than this means it hangs."""

R = TypeVar("R", bound=wire.Message)


@dataclass(frozen=True, slots=True)
class CpuShape:
    """The CPU that a guest sees.

    Attributes:
        cbit: position of the C-bit; 0 is the host's own.
        description: the platform's; empty for the best that it can give.
        limit: in its place, of a guest that is launched: what it is to see, in words.
    """

    cbit: int = 0
    description: bytes = b""
    limit: CpuDescription | None = None


ANY_CPU = CpuShape()
"""The best that a host can give."""


@dataclass(frozen=True, slots=True)
class PacketSlots:
    """Where packets of secure processors lie: `outgoing` is read-only here."""

    slot_size: int
    outgoing: Mapping
    incoming: Mapping

    def slot_out(self, slot: int, length: int) -> memoryview:
        """The packet that lies in an outgoing slot."""
        return self.outgoing.view[slot * self.slot_size :][:length]

    def slot_in(self, slot: int) -> memoryview:
        """A whole incoming slot."""
        return self.incoming.view[slot * self.slot_size :][: self.slot_size]

    def close(self) -> None:
        """Unmap them."""
        self.outgoing.close()
        self.incoming.close()


class Platform:
    """A platform process and the VM in it. Requests may come from any thread.

    Its life follows this connection: `close` (or our death) ends the process and the guest with it.

    Attributes:
        cpu: the CPU of its VM, once that is made.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, *, prealloc: bool = False) -> None:
        self._process = process
        self._prealloc = prealloc
        self._channel: Channel[wire.Reply, wire.Message] = Channel(sock, wire.Reply)
        self._lock = threading.Lock()
        self._layout: RamLayout | None = None
        self._memory: SharedMemory | None = None
        self._bitmap: Mapping | None = None
        self._handler: HandlerClient | None = None
        self._handler_lock = threading.Lock()
        self._packets: PacketSlots | None = None
        self._packets_lock = threading.Lock()
        self._debug: Mapping | None = None
        self._debug_lock = threading.Lock()
        self.cpu = ANY_CPU

    @classmethod
    def start(cls, identity: Path, manufacturer: Path, *, engine: str = "auto", prealloc: bool = False) -> Platform:
        """Start a platform process with the identity kept in a directory (made on first use).

        `engine` is to run its guests: kvm, unicorn, or auto for the best that can be used here. With `prealloc` it
        touches a VM's memory when it makes it; only for a guest that is to arrive.
        """
        ours, theirs = socket_pair()
        with theirs:
            command = [sys.executable, "-m", "sealift.silicon.process"]
            arguments = [str(theirs.fileno()), str(identity), str(manufacturer), engine]
            process = subprocess.Popen(
                command + arguments,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal goes to the whole process group; the platform's life follows the VMM's instead.
                start_new_session=True,
            )
        return cls(process, ours, prealloc=prealloc)

    @property
    def pid(self) -> int:
        """Process id of the platform process."""
        return self._process.pid

    def close(self) -> None:
        """End the platform process and let go of the memory shared with it. Does nothing the second time."""
        self.end()
        self._release()

    def end(self) -> None:
        """End the platform process; the guest is gone. What was mapped here stays until `close`."""
        self._channel.shutdown()
        self._channel.close()
        try:
            self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _release(self) -> None:
        """Give back what was mapped here: a guest that is gone leaves no descriptor behind."""
        with self._handler_lock:
            if self._handler is not None:
                self._handler.close()
                self._handler = None
        with self._packets_lock:
            if self._packets is not None:
                self._packets.close()
                self._packets = None
        with self._lock:
            if self._memory is not None:
                self._memory.mapping.close()
                self._memory = None
            if self._bitmap is not None:
                self._bitmap.close()
                self._bitmap = None
        with self._debug_lock:
            if self._debug is not None:
                self._debug.close()
                self._debug = None

    # --- requests ------------------------------------------------------------------------------------------------

    def request(self, message: wire.Message, expect: type[R]) -> R:
        """Ask, and wait for the reply.

        Raises:
            SealiftError: what the platform says went wrong; LostError when it is gone.
        """
        reply, fds = self._exchange(message, expect)
        _close_all(fds)
        return reply

    def _exchange(self, message: wire.Message, expect: type[R]) -> tuple[R, list[int]]:
        try:
            with self._lock:
                self._channel.send(message)
                reply, fds = self._channel.receive()
        except LostError as error:
            raise LostError(f"the platform process {self.pid} is gone") from error
        if isinstance(reply, wire.Failed):
            _close_all(fds)
            raise from_failed(reply)
        if not isinstance(reply, expect):
            _close_all(fds)
            raise InternalError(f"the platform answered {type(message).__name__} with {type(reply).__name__}")
        return reply, fds

    def info(self) -> wire.PlatformInfo:
        """What the platform says of itself."""
        return self.request(wire.GetPlatformInfo(), wire.PlatformInfo)

    def status(self) -> wire.GuestStatus:
        """GUEST_STATUS and the VM's phase."""
        return self.request(wire.GetGuestStatus(), wire.GuestStatus)

    def create_vm(
        self,
        layout: RamLayout,
        vcpus: int,
        cpu: CpuShape = ANY_CPU,
        *,
        irqchip: bool = False,
        es: bool = False,
        plain: bool = False,
    ) -> SharedMemory:
        """Make the VM and map its shared plane; `cpu` is what the guest must see, `self.cpu` what it does see."""
        blocks = tuple(wire.Block(block.name, block.gpa, block.size) for block in layout.blocks)
        wanted = wire.CreateVm(blocks, vcpus, self._prealloc, irqchip, cpu.cbit, cpu.description, es, plain, cpu.limit)
        made, fds = self._exchange(wanted, wire.VmCreated)
        self.cpu = CpuShape(made.cbit, made.cpu)
        shared, bitmap = _expect_fds(fds, 2)
        self._layout = layout
        self._bitmap = Mapping(bitmap, made.bitmap_bytes)
        self._memory = SharedMemory(shared, layout)
        return self._memory

    def create_vcpu(self, index: int) -> VmmEnd:
        """Make a vCPU; its link takes Run and answers exits."""
        _, fds = self._exchange(wire.CreateVcpu(index), wire.Done)
        sock, area = _expect_fds(fds, 2)
        return vmm_end(LinkParts(socket.socket(fileno=sock), area))

    def interrupt(self, gsi: int) -> int:
        """An eventfd, ours to close, that raises an edge on an interrupt line."""
        _, fds = self._exchange(wire.ConnectInterrupt(gsi), wire.Done)
        (fd,) = _expect_fds(fds, 1)
        return fd

    def open_handler(self) -> HandlerClient:
        """The guest's migration handler, connected at the first call and for as long as the guest is here."""
        with self._handler_lock:
            if self._handler is None:
                self._handler = self._connect_handler()
            return self._handler

    def handler_counts(self) -> HandlerCounts | None:
        """What went in and out of the guest's migration handler; None if nobody has asked for it yet."""
        with self._handler_lock:
            return None if self._handler is None else self._handler.counts

    def _connect_handler(self) -> HandlerClient:
        opened, fds = self._exchange(wire.OpenHandler(), wire.HandlerOpened)
        sock, outgoing, incoming, bell = _expect_fds(fds, 4)
        size = opened.slots * opened.slot_size
        return HandlerClient(
            socket.socket(fileno=sock),
            opened,
            outgoing=Mapping(outgoing, size, writable=False),
            incoming=Mapping(incoming, size),
            bell=bell,
        )

    def open_packets(self) -> PacketSlots:
        """Slots for packets of secure processors, made at the first call and for as long as the guest is here."""
        with self._packets_lock:
            if self._packets is None:
                opened, fds = self._exchange(wire.OpenPackets(), wire.PacketsOpened)
                outgoing, incoming = _expect_fds(fds, 2)
                size = opened.slots * opened.slot_size
                self._packets = PacketSlots(
                    opened.slot_size, Mapping(outgoing, size, writable=False), Mapping(incoming, size)
                )
            return self._packets

    @contextmanager
    def debug_window(self) -> Iterator[memoryview]:
        """The memory through which DBG_DECRYPT and DBG_ENCRYPT move data: ours alone until the block ends.

        Raises:
            RefusedError: the guest is not confidential, and needs none.
        """
        with self._debug_lock:
            if self._debug is None:
                opened, fds = self._exchange(wire.OpenDebugWindow(), wire.DebugWindow)
                (fd,) = _expect_fds(fds, 1)
                self._debug = Mapping(fd, opened.size)
            yield self._debug.view

    def system_registers(self, index: int) -> wire.SystemRegisters:
        """Segments and descriptor tables of a vCPU."""
        return self.request(wire.GetSystemRegisters(index), wire.VcpuSystemRegisters).registers

    def registers(self, index: int) -> wire.Registers:
        """General and control registers of a vCPU."""
        return self.request(wire.GetRegisters(index), wire.VcpuRegisters).registers

    def do(self, message: wire.Message) -> None:
        """A request that is answered with Done."""
        self.request(message, wire.Done)

    def shared_dirty(self) -> PageSet:
        """Move the set of shared-plane pages that the guest wrote since the last call here; not what devices wrote."""
        return self._bitmap_after(wire.GetSharedDirtyLog())

    def private_dirty(self) -> PageSet:
        """Move the set of private-plane pages that were written since the last call here, while the guest is sent."""
        return self._bitmap_after(wire.GetPrivateDirtyLog())

    def page_states(self) -> PageSet:
        """The pages in shared state, as the platform has it."""
        return self._bitmap_after(wire.GetPageStates())

    def set_page_states(self, shared: PageSet) -> None:
        """Tell the platform which pages of a guest that arrives are in shared state."""
        if self._bitmap is None:
            raise InternalError("no VM was created")
        data = shared.to_bytes()
        self._bitmap.view[: len(data)] = data
        self.do(wire.SetPageStates())

    def _bitmap_after(self, message: wire.Message) -> PageSet:
        if self._bitmap is None or self._layout is None:
            raise InternalError("no VM was created")
        self.request(message, wire.Count)
        pages = self._layout.pages
        return PageSet.from_bytes(pages, bytes(self._bitmap.view[: (pages + 63) // 64 * 8]))


def _expect_fds(fds: Sequence[int], count: int) -> Sequence[int]:
    if len(fds) != count:
        _close_all(fds)
        raise InternalError(f"the platform sent {len(fds)} descriptors instead of {count}")
    return fds


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
