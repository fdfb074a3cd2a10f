"""Post-copy at the source: the guest runs on the target, and what that misses is sent, leg after leg.

Two threads serve a leg, so that what is demanded waits for nothing: one pushes what nobody has demanded, in the
stream; the other reads demands and answers on connections of their own. How frames and records go: `wire.handover`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sealift.errors import LostError, SealiftError, StreamError
from sealift.vmm.machine import Machine
from sealift.vmm.migration.lanes import Lane
from sealift.vmm.migration.livecopy import Subject, introduce
from sealift.vmm.migration.method import PUSHED_PAGES, LateSource, Record
from sealift.vmm.migration.sending import Returns, new_ticket
from sealift.vmm.migration.stats import PAGE_COST, Statistics
from sealift.vmm.migration.streamio import StreamWriter
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.wire.handover import TAKEN, FrameKind, Method, SealedKind, demanded
from sealift.wire.side_connection import SideFront

CONNECTIONS = 3
"""The stream, what was demanded, and demands: each goes one way, since TLS is for one thread at a time."""


def why_not_late(machine: Machine) -> str:
    """Why a guest cannot be moved by post-copy, whatever its target; empty if it can."""
    if machine.spec.es or machine.platform.info().engine != "unicorn":
        return (
            "post-copy needs the engine unicorn and a guest without SEV-ES: vCPUs of others cannot wait for pages yet; "
            "switch the capability postcopy-ram off"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Served:
    """Whom a leg serves: the guest, what seals its pages, who counts them, and what slows those that are pushed."""

    subject: Subject
    late: LateSource
    stats: Statistics
    throttle: Throttle


class ServedLeg:
    """One pair of connections, from the introduction to the target's word that it has everything."""

    def __init__(
        self,
        served: Served,
        out: StreamOut,
        returns: Returns,
        connect: Callable[[], socket.socket],
        hang_up: Callable[[], None],
    ) -> None:
        """Over a stream and what comes back on its connection, and over connections that `connect` makes beside.

        `hang_up` ends all of them, and whatever waits to be sent.
        """
        self._hang_up = hang_up
        self._subject, self._late, self._stats = served.subject, served.late, served.stats
        self._out, self._offered = out, returns
        self._throttle = served.throttle
        self._connect = connect
        self._lane: Lane | None = None
        self._back: socket.socket | None = None
        self._done = False
        self._error: SealiftError | None = None

    def begin(self) -> None:
        """Agree on the leg, and have the connection beside the stream.

        Raises:
            SealiftError: no such target is there, or it is lost.
        """
        ticket = new_ticket()
        offer = self._late.ask_for_leg()
        introduce(self._out, self._subject, Method.MH, offer, connections=CONNECTIONS, ticket=ticket, resumes=True)
        self._late.begin_leg(self._offered.expect(FrameKind.ANSWER, self._offered.patience.reply_s))
        ahead = self._connect()
        self._lane = Lane(ahead, StreamWriter(ahead, unlimited), SideFront(1, ticket))
        self._back = self._connect()
        self._answers = StreamWriter(self._back, unlimited)
        self._answers.write(SideFront(2, ticket).encode())
        self._returns = Returns(self._back, self._offered.patience)

    def serve(self) -> None:
        """Send everything that is missing there; returns when it is there.

        Raises:
            LostError: the connections are lost before.
        """
        answering = threading.Thread(target=self._answer, name="demands", daemon=True)
        answering.start()
        try:
            while (record := self._next()) is not None:
                self._out.piece(SealedKind.RECORD, *record.parts)
                self._count(record.pages)
            answering.join()
        except SealiftError as error:
            self._hang_up()
            answering.join()
            if not self._done:
                raise LostError("the target is lost") from (self._error or error)
        if self._error is not None:
            raise LostError("the target is lost") from self._error

    def _next(self) -> Record | None:
        """What is pushed next. It is sealed behind the wait for its turn: until then it can be demanded."""
        self._throttle.spend(PUSHED_PAGES * PAGE_COST)
        return None if self._done else self._late.push()

    def close(self) -> None:
        """Let go of the connections beside the stream."""
        if self._lane is not None:
            self._lane.close()
        if self._back is not None:
            self._back.close()

    def _answer(self) -> None:
        try:
            while not self._done:
                self._heed()
        except SealiftError as error:
            self._error = error
        self._hang_up()  # who pushes learns it so

    def _heed(self) -> None:
        frame = self._returns.next()
        match frame.kind:
            case FrameKind.DEMAND:
                for page in demanded(frame.payload):
                    self._send(page)
            case FrameKind.FILLED:
                self._late.filled(frame.payload)
                self._done = True
                self._answers.write(TAKEN.encode())
            case kind:
                raise StreamError(f"the target sent {kind.name} while pages were missing")

    def _send(self, page: int) -> None:
        record = self._late.demanded(page)
        if record is not None and self._lane is not None:
            self._lane.send(record.parts)
            self._stats.demanded_pages += 1
            self._count(record.pages)

    def _count(self, pages: int) -> None:
        self._stats.private_pages += pages
        self._stats.remaining = self._late.missing() * PAGE_COST
        self._stats.add_sent(pages * PAGE_COST)


def unlimited(_: int) -> None:
    """A guest waits for what is written so."""
