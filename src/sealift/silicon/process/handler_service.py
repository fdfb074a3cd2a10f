"""The thread the migration handler lives on: sleeps on its socket, answers one request after the other.

It depends on no vCPU, so it answers while the guest is stopped or hangs, and costs nothing while nobody asks. After a
request in the mailbox it looks there for a moment before it sleeps again: the next one mostly follows at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from sealift.errors import InternalError, LostError, SealiftError
from sealift.guest.handler.channels import Sealed as SealedRecord
from sealift.guest.handler.commit import Event, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.mailbox import Mailbox
from sealift.guest.handler.sealer import Pull
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.ring import Ring
from sealift.wire import handler as wire
from sealift.wire.channel import Channel
from sealift.wire.failure import to_failed
from sealift.wire.handover import DEMANDS_LIMIT
from sealift.wire.lookout import Lookout
from sealift.wire.platform import Done

_Request: TypeAlias = wire.HandlerRequest

_LISTED_PAGES = 4096
"""Page numbers in one reply: 32 KiB, a third of what a message may hold."""


class HandlerService:
    """Serves the handler's socket until the other end closes it; `forget` runs beside it once the guest is not here."""

    def __init__(
        self,
        handler: MigrationHandler,
        mailbox: Mailbox,
        gate: RunGate,
        sock: socket.socket,
        *,
        outgoing: Ring,
        incoming: Ring,
        forget: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._mailbox = mailbox
        self._gate = gate
        self._outgoing = outgoing
        self._incoming = incoming
        self._forget = forget
        self._over = False
        self._lookout = Lookout()
        self._channel: Channel[_Request, wire.HandlerReply] = Channel(sock, wire.HandlerRequest)

    def start(self) -> None:
        """Serve in a thread of its own, which ends with the connection."""
        threading.Thread(target=self._serve, name="handler", daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                request: _Request | None = None
                try:
                    request = self._channel.receive_alone()
                    reply = self._answer(request)
                except LostError:
                    raise
                except SealiftError as error:
                    reply = to_failed(error)
                self._forget_if_over()
                self._channel.send(reply)
                if isinstance(request, wire.ServeMailbox):
                    self._serve_followers()
        except LostError:
            self._channel.close()

    def _serve_followers(self) -> None:
        """Serve requests that come to the mailbox before it is worth to sleep, as if they had been rung for."""
        with contextlib.suppress(SealiftError):  # the request stays, and is rung for: then the reply says why
            while self._mailbox.comes(self._lookout):
                self._answer(wire.ServeMailbox())
                self._forget_if_over()

    def _forget_if_over(self) -> None:
        """The guest runs elsewhere, or never ran here: nothing of it stays in this process.

        Giving its memory back takes the kernel 0.15 s a GiB, which is no time that a migration has to wait for.
        """
        if not self._over and self._handler.state in {State.GONE, State.ABORTED}:
            self._over = True
            threading.Thread(target=self._forget, name="forget", daemon=True).start()

    def _answer(self, request: _Request) -> wire.HandlerReply:
        stood_still = not self._handler.may_run
        try:
            return self._carry_out(request)
        finally:
            # Whatever led back to a state that runs (a cancel, an ABORTED, a new offer), vCPUs may enter again. Where
            # the guest ran before, a bar is somebody else's: SEND_FINISH's, say.
            if stood_still and self._handler.may_run:
                self._gate.lift()

    def _carry_out(self, request: _Request) -> wire.HandlerReply:
        if isinstance(request, wire.Pull | wire.EndEpoch | wire.SealState | wire.Close | wire.SealMissing):
            return self._seal(request)
        if isinstance(request, wire.Stop | wire.Answer | wire.Cancel | wire.Fetch | wire.Deliver):
            return self._step(request)
        if isinstance(request, wire.Save | wire.EndSnapshot | wire.Restore | wire.TakeSnapshot):
            return self._snapshot(request)
        return self._plain(request)

    def _seal(self, request: wire.Pull | wire.EndEpoch | wire.SealState | wire.Close | wire.SealMissing) -> wire.Sealed:
        """Requests that leave a record in an outgoing slot."""
        out = self._outgoing.slot(request.slot)
        match request:
            case wire.Pull():
                pull = Pull(channel=request.channel, number=request.number, pages=request.pages)
                return _sealed(self._handler.pull(pull, out))
            case wire.SealState():
                return _sealed(self._handler.seal_state(out))
            case wire.EndEpoch():
                record = self._handler.end_epoch(request.channel)
            case wire.Close():
                record = self._handler.close()
            case wire.SealMissing():
                record = self._handler.seal_missing(request.page) or b""
        out[: len(record)] = record
        return wire.Sealed(len(record), 0, 0)

    def _step(self, request: wire.Stop | wire.Answer | wire.Cancel | wire.Fetch | wire.Deliver) -> wire.Blob | Done:
        """Requests that decide whether vCPUs may run."""
        match request:
            case wire.Stop():
                with self._barred_for(Event.STOP):
                    self._handler.stop()
            case wire.Answer():
                with self._barred_for(Event.ANSWER):
                    return wire.Blob(self._handler.answer(request.offer))
            case wire.Cancel():
                self._handler.cancel()
            case wire.Fetch():
                return wire.Blob(self._handler.token(request.kind))
            case wire.Deliver():
                self._handler.deliver(request.token)
        return Done()

    def _snapshot(self, request: wire.Save | wire.EndSnapshot | wire.Restore | wire.TakeSnapshot) -> wire.Blob | Done:
        match request:
            case wire.Save():
                return wire.Blob(self._handler.save(request.channels))
            case wire.EndSnapshot():
                return wire.Blob(self._handler.end_snapshot(request.digest))
            case wire.Restore():
                with self._barred_for(Event.RESTORE):
                    self._handler.restore(request.header)
            case wire.TakeSnapshot():
                self._handler.take_snapshot(request.end, request.digest)
        return Done()

    @contextmanager
    def _barred_for(self, event: Event) -> Iterator[None]:
        """Bar the vCPUs before a step that is possible; should it fail nevertheless, nothing has changed.

        A step that is not possible leaves them alone and fails by itself.
        """
        possible = self._handler.allows(event)
        if possible:
            self._gate.bar()
        try:
            yield
        except SealiftError:
            if possible:
                self._gate.lift()
            raise

    def _plain(self, request: _Request) -> wire.HandlerReply:
        handler = self._handler
        match request:
            case wire.Open():
                opened = handler.open(self._incoming.slot(request.slot)[: max(request.length, 0)])
                return wire.Opened(opened.kind, opened.pages, opened.missing)
            case wire.ServeMailbox():
                self._mailbox.serve()
                return Done()
            case wire.BeginEpoch() | wire.CountUnsent() | wire.RoundPages() | wire.LeaveMissing() | wire.TakeDemands():
                return self._round(request)
            case wire.GetStatus():
                return handler_status(handler)
            case wire.GetReceipt() | wire.GetResumeRequest():
                stated = handler.receipt if isinstance(request, wire.GetReceipt) else handler.resume_request
                return wire.Blob(stated())
            case _:
                return self._exchange(request)

    def _round(
        self, request: wire.BeginEpoch | wire.CountUnsent | wire.RoundPages | wire.LeaveMissing | wire.TakeDemands
    ) -> wire.EpochBegun | wire.Unsent | wire.PageList:
        """Requests about which pages are to be sent."""
        match request:
            case wire.BeginEpoch():
                return wire.EpochBegun(*self._handler.begin_epoch())
            case wire.CountUnsent():
                return wire.Unsent(self._handler.unsent_pages())
            case wire.LeaveMissing():
                return wire.Unsent(self._handler.leave_missing())
            case wire.TakeDemands():
                return wire.PageList(self._handler.demands(DEMANDS_LIMIT).astype("<u8").tobytes())
            case wire.RoundPages():
                numbers = self._handler.round_pages(request.first, min(request.limit, _LISTED_PAGES))
                return wire.PageList(numbers.astype("<u8").tobytes())

    def _exchange(self, request: _Request) -> wire.Blob | Done:
        match request:
            case wire.Offer():
                return wire.Blob(self._handler.offer(request.channels))
            case wire.Confirm():
                return wire.Blob(self._handler.confirm(request.answer))
            case wire.Confirmed():
                self._handler.confirmed(request.confirm)
                return Done()
            case wire.AskForLeg():
                return wire.Blob(self._handler.ask_for_leg())
            case wire.AnswerLeg():
                return wire.Blob(self._handler.answer_leg(request.request))
            case wire.BeginLeg():
                self._handler.begin_leg(request.answer)
                return Done()
            case _:
                raise InternalError(f"there is no answer to {type(request).__name__}")


def handler_status(handler: MigrationHandler) -> wire.HandlerStatus:
    """State and readiness, for people and preflights."""
    offers = handler.allows(Event.OFFER) and not handler.blocked()
    answers = (handler.allows(Event.ANSWER) or handler.allows(Event.RESTORE)) and handler.has_key
    return wire.HandlerStatus(offers or answers, handler.state.name, handler.migration)


def _sealed(record: SealedRecord) -> wire.Sealed:
    return wire.Sealed(record.length, record.pages, record.remaining)
