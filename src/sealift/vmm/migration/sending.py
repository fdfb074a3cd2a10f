"""The source's conversation around its rounds: introduction and handover. What happens when it fails: `source`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from sealift.errors import LostError, RefusedError, SealiftError, StreamError
from sealift.vmm.migration.lanes import Lane, Lanes
from sealift.vmm.migration.livecopy import LiveCopy, Subject, Watch
from sealift.vmm.migration.method import LegMethod, SourceMethod
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.stats import DowntimePart, Statistics
from sealift.vmm.migration.streamio import EndedError, StreamReader, readable_now
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.wire.handover import TAKEN, Frame, FrameKind, Refusal, SealedKind, read_frame
from sealift.wire.receipt import Receipt
from sealift.wire.side_connection import TICKET_SIZE


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

    def next(self) -> Frame:
        """What it says next, however long that takes.

        Raises:
            TargetRefusedError: it refuses.
            LostError: it is gone.
        """
        return self._read(None)

    def why(self, broken: EndedError) -> SealiftError:
        """Why the connection broke while sending: the target's last word, if it left one."""
        try:
            self._read(self.patience.last_word_s)
        except TargetRefusedError as refused:
            return refused
        except LostError as lost:
            if isinstance(lost.__cause__, EndedError):
                broken = lost.__cause__  # TLS has told the reason to who reads
        except SealiftError:
            pass  # it left none that makes sense: then all we know is that it is gone
        gone = LostError("the target is gone")
        gone.__cause__ = broken
        return gone

    def _read(self, limit_s: float | None) -> Frame:
        try:
            with contextlib.nullcontext() if limit_s is None else self._reader.within(limit_s):
                frame = read_frame(self._reader.take)
        except EndedError as error:
            raise LostError("the target is gone") from error
        if frame.kind is FrameKind.REFUSED:
            raise TargetRefusedError(Refusal.decode(frame.payload))
        return frame


@dataclass(frozen=True, slots=True)
class Line:
    """The connections: the stream there, with its throttle, what comes back, and how to open those beside it.

    `beside` opens connections of channels 1 and on, that show a ticket.
    """

    out: StreamOut
    throttle: Throttle
    returns: Returns
    beside: Callable[[bytes], tuple[Lane, ...]]


def new_ticket() -> bytes:
    """What connections beside a stream show."""
    return os.urandom(TICKET_SIZE)


class Sender:
    """Moves one guest, over one connection or several."""

    def __init__(
        self,
        subject: Subject,
        method: SourceMethod,
        line: Line,
        parameters: Callable[[], Parameters],
        stats: Statistics,
        watch: Watch,
        leg: LegMethod | None = None,
    ) -> None:
        """Move it by `method`; with `leg`, which is the same one, what began over other connections goes on."""
        self._machine = subject.machine
        self._method = method
        self._leg = leg
        self._late = method.late() if Capability.POSTCOPY_RAM in parameters().capabilities else None
        self._keep_s = parameters().resume_window_s
        self._out = line.out
        self._lanes = Lanes(line.out)
        self._beside = line.beside
        self._channels = parameters().channels
        self._throttle = line.throttle
        self._returns = line.returns
        self._stats = stats
        self._watch = watch
        self._copy = LiveCopy(subject, method, self._lanes, parameters, stats, replace(watch, check=self._check))

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
        finally:
            self._lanes.close()
        raise self._returns.why(broken)

    def _check(self) -> None:
        self._watch.check()
        self._lanes.check()

    def _converse(self) -> None:
        self._introduce()
        self._watch.active()
        early = self._copy.rounds(self._late)
        self._throttle.lift()
        if early and self._late is not None:
            self._copy.stop_early(self._late)
        else:
            self._copy.stop()
        self._copy.finish()
        self._hand_over()

    def _introduce(self) -> None:
        ticket = new_ticket() if self._channels > 1 else b""
        leg = self._leg
        offer = self._method.start() if leg is None else leg.ask_for_leg()
        self._copy.introduce(
            offer,
            connections=self._channels,
            ticket=ticket,
            keep_s=self._keep_s,
            resumes=leg is not None,
            late=self._late is not None,
        )
        answer = self._returns.expect(FrameKind.ANSWER, self._returns.patience.answer_s)
        if leg is not None:
            leg.begin_leg(answer)
        confirm = b"" if leg is not None else self._method.agree(answer)
        self._stats.migration = self._method.identity()
        if ticket:
            self._lanes.open(self._beside(ticket))
        if confirm:
            self._out.piece(SealedKind.CONFIRM, confirm)

    def _hand_over(self) -> None:
        """PREPARED, FINAL, STARTED; and the receipt."""
        self._stats.downtime_part(DowntimePart.PREPARED)
        prepared = self._returns.expect(FrameKind.PREPARED, self._returns.patience.prepared_s)
        self._returns.check()  # a target that is already gone costs a method without tokens the guest
        self._watch.settled()
        self._stats.downtime_part(DowntimePart.START)
        # Before the target can have the right to start: it finds the images complete and free.
        self._machine.devices.leave_disks()
        self._out.frame(Frame(FrameKind.FINAL, self._method.fence(prepared)))
        started = self._returns.expect(FrameKind.STARTED, self._returns.patience.reply_s)
        self._stats.arrived()
        if not self._method.release(started):
            raise StreamError("the target's word that it runs the guest says something else")
        self._stats.downtime_part(None)
        with contextlib.suppress(EndedError):  # it is told so that it need not keep the token
            self._out.frame(TAKEN)
        self._stats.receipt = Receipt.of(self._method.receipt(), self._other_half())

    def _other_half(self) -> bytes:
        """The target's half of the receipt. The guest runs there, whether or not this comes."""
        try:
            return self._returns.expect(FrameKind.RECEIPT, self._returns.patience.last_word_s)
        except SealiftError:
            return b""
