"""The source's conversation: introduction, rounds, the stop, the handover. What happens when it fails: `source`."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from sealift.address import PAGE_SIZE
from sealift.errors import LostError, RefusedError, SealiftError, StreamError
from sealift.pageset import PageSet
from sealift.vmm.machine import Machine
from sealift.vmm.migration import machine_state
from sealift.vmm.migration.convergence import Convergence
from sealift.vmm.migration.method import SourceMethod
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.shared_ram import RamEncoder, SharedLog
from sealift.vmm.migration.stats import DowntimePart, Statistics
from sealift.vmm.migration.streamio import EndedError, StreamReader, readable_now
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.runstate import RunState
from sealift.wire.handover import (
    TAKEN,
    Disk,
    Frame,
    FrameKind,
    Hardware,
    Hello,
    Refusal,
    SealedKind,
    blocks_of,
    read_frame,
)

_PAGE_COST = PAGE_SIZE + 8
"""Bytes of the stream for one page, of whatever kind: content and number (or header)."""


class TargetRefusedError(RefusedError):
    """The target gave up; `token` is its ABORTED, or empty."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__("the target refused")
        self.token = refusal.token
        self.__cause__ = refusal.error()


class Returns:
    """What the target says; it is given as long as `patience` has it."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self.patience = patience
        self._sock = sock
        self._reader = StreamReader(sock)

    def check(self) -> None:
        """While nothing is due: does the target refuse?

        Raises:
            TargetRefusedError: it does.
            LostError: it is gone.
        """
        if readable_now(self._sock):
            frame = self._read(self.patience.reply_s)
            raise StreamError(f"the target sent {frame.kind.name} where nothing was due")

    def expect(self, kind: FrameKind, limit_s: float) -> bytes:
        """Wait for a frame.

        Raises:
            TargetRefusedError: the target refuses instead.
            LostError: it is gone, or says nothing.
            StreamError: it says something else.
        """
        frame = self._read(limit_s)
        if frame.kind is not kind:
            raise StreamError(f"the target sent {frame.kind.name} where {kind.name} was due")
        return frame.payload

    def why(self, broken: EndedError) -> SealiftError:
        """Why the connection broke while sending: the target's last word, if it left one."""
        try:
            self._read(self.patience.last_word_s)
        except TargetRefusedError as refused:
            return refused
        except SealiftError:
            pass  # it left none that makes sense: then all we know is that it is gone
        gone = LostError("the target is gone")
        gone.__cause__ = broken
        return gone

    def _read(self, limit_s: float) -> Frame:
        try:
            with self._reader.within(limit_s):
                frame = read_frame(self._reader.take)
        except EndedError as error:
            raise LostError("the target is gone") from error
        if frame.kind is FrameKind.REFUSED:
            raise TargetRefusedError(Refusal.decode(frame.payload))
        return frame


@dataclass(frozen=True, slots=True)
class Watch:
    """How a conversation is watched: `check` raises if it is to be given up, `passed` marks what was reached."""

    check: Callable[[], None]
    active: Callable[[], None]
    device: Callable[[], None]
    fencing: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is moved: the machine and its name."""

    machine: Machine
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """The connection: the stream there, with its throttle, and what comes back."""

    out: StreamOut
    throttle: Throttle
    returns: Returns


class Sender:
    """Moves one guest over one connection."""

    def __init__(
        self,
        subject: Subject,
        method: SourceMethod,
        line: Line,
        parameters: Parameters,
        stats: Statistics,
        watch: Watch,
    ) -> None:
        self._before = RunState.RUNNING
        self._subject = subject
        self._machine = subject.machine
        self._method = method
        self._out = line.out
        self._throttle = line.throttle
        self._returns = line.returns
        self._parameters = parameters
        self._stats = stats
        self._watch = watch
        self._log = SharedLog(subject.machine, method.excluded())
        self._encoder = RamEncoder(subject.machine.memory)

    def move(self) -> None:
        """From the first byte to the target's word that the guest runs there.

        Raises:
            SealiftError: whatever went wrong; the caller takes the guest back.
        """
        try:
            self._converse()
        except EndedError as error:
            broken = error
        else:
            return
        raise self._returns.why(broken)

    def _converse(self) -> None:
        self._introduce()
        self._watch.active()
        self._rounds()
        self._throttle.lift()
        self._stop()
        self._finish()
        self._hand_over()

    def _introduce(self) -> None:
        offer = self._method.start()
        hello = Hello(
            method=self._parameters.method.value,
            guest=self._subject.name,
            vcpus=self._machine.vcpu_count,
            blocks=blocks_of(self._machine.layout),
            hardware=_hardware(self._machine),
            offer=offer,
        )
        self._out.begin(self._machine.layout)
        self._out.piece(SealedKind.HELLO, hello.encode())
        confirm = self._method.agree(self._returns.expect(FrameKind.ANSWER, self._returns.patience.answer_s))
        self._stats.migration = self._method.identity()
        self._out.piece(SealedKind.CONFIRM, confirm)

    # --- rounds ----------------------------------------------------------------------------------------------------

    def _rounds(self) -> None:
        """Until what remains fits the downtime limit at the bandwidth measured."""
        progress = Convergence()
        while True:
            self._round()
            self._stats.remaining = (self._method.unsent() + self._log.count()) * _PAGE_COST
            expected_s = self._stats.bandwidth.seconds_for(self._stats.remaining)
            if expected_s * 1e3 <= self._parameters.downtime_limit_ms:
                return
            self._stats.advice = progress.advice(self._stats.remaining, expected_s)

    def _round(self) -> None:
        private = self._method.begin_round()
        shared = self._log.take()
        if not self._stats.rounds:
            self._stats.hole_pages = self._machine.layout.pages - private
        self._stats.remaining = (private + len(shared)) * _PAGE_COST
        with self._stats.round():
            self._send_private()
            self._send_shared(shared)

    def _send_private(self) -> None:
        for record in self._method.records():
            self._watch.check()
            self._out.piece(SealedKind.RECORD, *record.parts)
            self._stats.private_pages += record.pages
            self._progressed(record.pages)

    def _send_shared(self, pages: PageSet) -> None:
        for batch in self._encoder.batches(pages):
            self._watch.check()
            self._out.ram(batch)
            self._stats.shared_pages += batch.content_pages
            self._stats.zero_pages += batch.zero_pages
            self._progressed(batch.content_pages + batch.zero_pages)

    def _progressed(self, pages: int) -> None:
        self._stats.remaining = max(0, self._stats.remaining - pages * _PAGE_COST)
        self._stats.sent = self._out.sent

    # --- the guest is stopped ----------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Stop the guest and send what it wrote since the last round."""
        self._watch.device()
        self._stats.downtime_part(DowntimePart.PAUSE)
        self._before = self._machine.begin_handover()
        self._method.stop()
        self._stats.downtime_part(DowntimePart.LAST_ROUND)
        self._round()

    def _finish(self) -> None:
        """Send all state, and end the stream."""
        self._stats.downtime_part(DowntimePart.STATE)
        for record in self._method.end_records():
            self._watch.check()
            self._out.piece(SealedKind.RECORD, *record.parts)
        self._out.end(machine_state.save(self._machine, self._before))
        self._stats.sent = self._out.sent

    def _hand_over(self) -> None:
        """PREPARED, FINAL, STARTED."""
        self._stats.downtime_part(DowntimePart.PREPARED)
        prepared = self._returns.expect(FrameKind.PREPARED, self._returns.patience.prepared_s)
        self._returns.check()  # a target that is already gone costs a method without tokens the guest
        self._watch.fencing()
        self._stats.downtime_part(DowntimePart.START)
        # Before the target can have the right to start: it finds the images complete and free.
        self._machine.devices.leave_disks()
        self._out.frame(Frame(FrameKind.FINAL, self._method.fence(prepared)))
        started = self._returns.expect(FrameKind.STARTED, self._returns.patience.reply_s)
        self._stats.arrived()
        if not self._method.release(started):
            raise StreamError("the target's word that it runs the guest says something else")
        with contextlib.suppress(EndedError):  # it is told so that it need not keep the token
            self._out.frame(TAKEN)


def _hardware(machine: Machine) -> Hardware:
    disks = tuple(Disk(disk.sectors, disk.read_only) for disk in machine.spec.disks)
    cpu = machine.platform.cpu
    return Hardware(machine.spec.type.value, cpu.cbit, cpu.description, disks)
