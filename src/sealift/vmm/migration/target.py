"""A migration to here: listens, serves one source, and either runs its guest or leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sealift.errors import GuestError, InternalError, LostError, SealiftError, StreamError
from sealift.launch.image import GuestRecipe
from sealift.vmm.console import Console
from sealift.vmm.launch import Launched, launch
from sealift.vmm.machine import Machine
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.method import TargetMethod
from sealift.vmm.migration.mh import HandlerTarget, target_transfer
from sealift.vmm.migration.receiving import Introduction, Sinks, StreamIn
from sealift.vmm.migration.shared_ram import RamLoader
from sealift.vmm.migration.streamio import EndedError, StreamReader, bulk_work, shut_down
from sealift.vmm.migration.transport import Address, Listener
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Frame, FrameKind, Refusal, read_frame
from sealift.wire.owner import OwnerService

_START_UP_LIMIT_S = 30.0
"""A receiver's start-up code halts after some thousand instructions; this is for machines under heavy load."""

_FAREWELL_LIMIT_S = 5.0
"""How long a target that refuses waits for the source to have read why."""

_FAREWELL_READS = 1024
"""Reads of 64 KiB meanwhile: far more than a source has underway that looks for a refusal between two records."""

_UNKNOWN_DIGEST = bytes(32)
"""Stands in a recipe for the handler digest, which `launch` takes from the platform."""


@dataclass(frozen=True, slots=True)
class TargetHost:
    """What a target needs of the host it is on.

    Attributes:
        platform: starts a platform process.
        owner: approves the receiver and releases its secret.
        startup: the start-up code of the receiver image.
        console: makes the guest's console.
        run_state: is called with every new run state of the guest.
    """

    platform: Callable[[], Platform]
    owner: OwnerService
    startup: bytes
    console: Callable[[], Console]
    run_state: Callable[[RunState], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A guest that runs here now (or is paused, as it was there).

    Attributes:
        launched: the receiver's launch; the guest's next hop starts from it.
        started: the STARTED token, for a source that the connection did not bring it to.
    """

    machine: Machine
    launched: Launched
    name: str
    started: bytes


@dataclass(slots=True)
class _Guest:
    """What has been made so far."""

    machine: Machine
    launched: Launched
    method: TargetMethod


class Incoming:
    """Listens at an address and serves exactly one migration.

    Attributes:
        address: where it listens.
        aborted: the ABORTED token of a target that gave up, for a source that is left fenced; else empty.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, address: Address, host: TargetHost) -> None:
        self._listener = Listener(address)
        self.address = self._listener.address
        self.aborted = b""
        self._host = host
        self._lock = threading.Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None
        self._machine: Machine | None = None
        self._method: TargetMethod | None = None

    def serve(self) -> Arrived:
        """Wait for a source and take its guest; blocks, so give it a thread of its own.

        Raises:
            SealiftError: why no guest came; the source was told, and nothing is left of it here.
        """
        with contextlib.closing(self._listener):
            sock = self._listener.accept()
        with contextlib.closing(sock):
            try:
                self._adopt(sock)
                return self._receive(sock)
            except SealiftError as error:
                self._refuse(sock, error)
                raise
            except BaseException as error:
                self._refuse(sock, InternalError(f"a bug ended the migration ({type(error).__name__})"))
                raise

    def cancel(self) -> None:
        """Give it up, from any thread; a guest that has started stays."""
        with self._lock:
            self._cancelled = True
            if self._sock is not None:
                shut_down(self._sock)
        self._listener.wake()

    def close(self) -> None:
        """Stop listening, and give up what is underway."""
        self.cancel()
        self._listener.close()

    # --- the guest's way in ----------------------------------------------------------------------------------------

    def _adopt(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock
            if self._cancelled:
                raise LostError("the target was told to give up")

    def _receive(self, sock: socket.socket) -> Arrived:
        reader = StreamReader(sock)
        try:
            stream = StreamIn(reader)
            introduction = stream.introduction()
            guest = self._make(introduction)
            answer = guest.method.answer(introduction.hello.offer)
            _send(sock, Frame(FrameKind.ANSWER, answer))
            guest.method.agreed(stream.confirmation())
            restorer = Restorer(guest.machine)
            with bulk_work():
                stream.rest(Sinks(guest.method, RamLoader(guest.machine.memory), restorer))
            guest.machine.replace_shared_pages(guest.machine.platform.page_states())
        except EndedError as error:
            raise StreamError("the stream is truncated") from error
        _send(sock, Frame(FrameKind.PREPARED, guest.method.prepared()))
        guest.method.ready(_expect_final(reader))
        return self._start(sock, guest, restorer, introduction.hello.guest)

    def _make(self, introduction: Introduction) -> _Guest:
        """The machine with a receiver in it that waits for its guest."""
        hello, layout = introduction.hello, introduction.layout
        recipe = GuestRecipe(self._host.startup, layout, hello.vcpus, _UNKNOWN_DIGEST)
        machine = self._machine = self._make_machine(recipe)
        launched = launch(machine.platform, machine.memory, recipe, self._host.owner, hello.measure)
        _run_start_up(machine)
        handler = machine.platform.open_handler()
        method = self._method = HandlerTarget(handler, target_transfer(hello.transfer, handler, machine.memory))
        return _Guest(machine, launched, method)

    def _make_machine(self, recipe: GuestRecipe) -> Machine:
        platform = self._host.platform()
        try:
            return Machine(platform, recipe.layout, recipe.vcpus, self._host.console(), self._host.run_state)
        except BaseException:
            platform.close()
            raise

    def _start(self, sock: socket.socket, guest: _Guest, restorer: Restorer, name: str) -> Arrived:
        """The guest is ours: run it. From here on nothing is given up any more."""
        with self._lock:
            if self._cancelled:
                raise LostError("the target was told to give up")
            started = guest.method.started()
        if restorer.paused:
            guest.machine.arrive_paused()
        else:
            guest.machine.resume()
        with contextlib.suppress(LostError):  # the source is gone; whoever finds it there brings it the token
            _send(sock, Frame(FrameKind.STARTED, started))
        return Arrived(guest.machine, guest.launched, name, started)

    # --- the way out -------------------------------------------------------------------------------------------------

    def _refuse(self, sock: socket.socket, error: SealiftError) -> None:
        """Tell the source why, and leave nothing behind."""
        try:
            if self._method is not None:
                self.aborted = self._method.abort()
        finally:
            if self._machine is not None:
                self._machine.close()
            _say_farewell(sock, Refusal.of(error, self.aborted))


def _run_start_up(machine: Machine) -> None:
    machine.resume()
    halted = machine.vcpus.wait_all_halted(_START_UP_LIMIT_S)
    if machine.state is not RunState.RUNNING:
        raise GuestError(f"the receiver ended while starting up: {machine.report}")
    if not halted:
        raise GuestError(f"the receiver has not started up after {_START_UP_LIMIT_S:.0f} s")
    machine.pause(RunState.INMIGRATE)


def _expect_final(reader: StreamReader) -> bytes:
    try:
        frame = read_frame(reader.take)
    except EndedError as error:
        raise LostError("the source closed the connection instead of handing the guest over") from error
    if frame.kind is not FrameKind.FINAL:
        raise StreamError(f"the source sent {frame.kind.name} where FINAL was due")
    return frame.payload


def _send(sock: socket.socket, frame: Frame) -> None:
    try:
        sock.sendall(frame.encode())
    except OSError as error:
        raise LostError(f"the source is gone ({error.strerror})") from error


def _say_farewell(sock: socket.socket, refusal: Refusal) -> None:
    """Send the refusal and read on until the source has gone: closing over unread bytes could destroy it."""
    sink = bytearray(1 << 16)
    with contextlib.suppress(OSError):  # the source is gone: nobody is left to be told
        sock.settimeout(_FAREWELL_LIMIT_S)
        sock.sendall(refusal.frame().encode())
        sock.shutdown(socket.SHUT_WR)
        for _ in range(_FAREWELL_READS):
            if not sock.recv_into(sink):
                return
