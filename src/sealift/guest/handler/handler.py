"""The migration handler's only door: every request is checked against the commit table, then carried out.

A source is asked, in this order::

    offer → confirm(answer) → { begin_epoch → pull … → end_epoch on every channel } …
      → stop → one more such round → seal_state … → close
      → deliver(PREPARED) → token(FINAL) → deliver(STARTED)

and a target::

    answer(offer) → confirmed(confirm) → open(record) … → token(PREPARED) → deliver(FINAL) → token(STARTED)

A snapshot's source instead

    save → { the same rounds } … → stop → … → close → end_snapshot(digest)

and who restores it

    restore(header) → open(record) … → take_snapshot(end, digest) → token(STARTED)

Post-copy leaves some pages for after the switch: the source `leave_missing` instead of a last round, and once it has
taken STARTED serves them, in a leg of its own

    ask_for_leg → begin_leg(answer) → { pull …, seal_missing … } → deliver(FILLED)

while the target, which runs, takes them: answer_leg(request) → open(record) … → token(FILLED).

A source may cancel until it made FINAL. Whatever fails while a target opens records ends that target. The file is
long because it is the whole list of requests; what they do is in the modules beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from sealift.errors import InternalError, RefusedError, SealError, UserError
from sealift.guest.handler import postcopy, receipts, resumption, snapshot
from sealift.guest.handler.channels import Carried, Sealed
from sealift.guest.handler.commit import Commit, Event, Role, State
from sealift.guest.handler.exchange import NO_KEY, Initiator, Session, respond
from sealift.guest.handler.incoming import Incoming
from sealift.guest.handler.interfaces import Clock, Guest, LaunchFacts
from sealift.guest.handler.opener import Opened
from sealift.guest.handler.outgoing import Outgoing
from sealift.guest.handler.sealer import Pull
from sealift.guest.handler.tokens import TokenDesk
from sealift.launch.secrets import MigrationSecret
from sealift.pageset import PageNumbers, PageSet
from sealift.wire.receipt import Side
from sealift.wire.record import MAX_CHANNELS, RecordKind
from sealift.wire.token import TokenKind, split_token

EXCHANGE_LIMIT_S = 60.0
"""How long ephemeral keys wait for the peer's next message; Intel's MigTD allows each phase as much."""

NOT_READY = (
    "the guest does not say that it can be migrated (MSR_KVM_MIGRATION_CONTROL); Linux says so while it boots, and "
    "takes it back before it restarts"
)
"""A kernel that says nothing does not tell which of its pages are shared, and would lose them."""

_TAKES = {
    TokenKind.PREPARED: Event.TAKE_PREPARED,
    TokenKind.FINAL: Event.TAKE_FINAL,
    TokenKind.STARTED: Event.TAKE_STARTED,
    TokenKind.ABORTED: Event.TAKE_ABORTED,
    TokenKind.RESUME: Event.TAKE_RESUME,
    TokenKind.FILLED: Event.TAKE_FILLED,
}

T = TypeVar("T")


class MigrationHandler:
    """One guest's migration handler; thread-safe.

    Attributes:
        facts: what is known of the guest since its launch.
        excluded: RAM pages that never travel.
    """

    def __init__(
        self, role: Role, facts: LaunchFacts, secret: MigrationSecret | None, guest: Guest, clock: Clock
    ) -> None:
        """Make the handler of a launched guest, or (role TARGET) of a receiver.

        `secret` is None if the owner released no migration key.
        """
        self.facts = facts
        self.excluded = PageSet.of(facts.layout.pages, np.array(facts.excluded, np.uint64))
        self._commit = Commit(role)
        self._secret = secret
        self._guest = guest
        self._clock = clock
        self._lock = threading.RLock()
        self._deadline = 0.0
        self._initiator: Initiator | None = None
        self._outgoing: Outgoing | None = None
        self._incoming: Incoming | None = None
        self._made: dict[TokenKind, bytes] = {}
        self._taken: set[bytes] = set()
        self._receipt = b""

    # --- both roles ------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the handler is in the commit table."""
        return self._commit.state

    @property
    def may_run(self) -> bool:
        """Whether the guest's vCPUs may enter guest mode."""
        return self._commit.may_run

    @property
    def has_key(self) -> bool:
        """Whether the owner released a migration key."""
        return self._secret is not None

    @property
    def migration(self) -> bytes:
        """Id of the migration under way, 16 bytes; empty without one."""
        session = self._outgoing or self._incoming
        return b"" if session is None else session.migration

    def blocked(self) -> tuple[str, ...]:
        """What stands in the way of every migration from here, whatever the state; sentences."""
        reasons = []
        if self._secret is None:
            reasons.append(NO_KEY)
        if not self._guest.machine.ready():
            reasons.append(NOT_READY)
        return tuple(reasons)

    def allows(self, event: Event) -> bool:
        """Whether `event` is possible in this state."""
        return self._commit.allows(event)

    def cancel(self) -> None:
        """Give the migration up: a source's guest may run again, a target is aborted for good.

        Raises:
            UserError: FINAL was made, so only the target (or the owner) can say who runs; or the guest has gone.
        """
        with self._lock:
            self._commit.step(Event.CANCEL)
            match self._commit.state:
                case State.RUNNING:
                    self._end_source()
                case State.ABORTED:
                    self._end_target()
                case _:
                    pass  # STARTED, FILLING: there is nothing to give up

    def token(self, kind: TokenKind) -> bytes:
        """Make the token of that kind, which takes the step it stands for; once made, fetch the same bytes again.

        Making ABORTED is a target's cancel. PREPARED is made by the close record, FILLED by the last missing page.

        Raises:
            UserError: not possible in this state.
        """
        with self._lock:
            if kind not in self._made:
                self._make(kind)
            return self._made[kind]

    def deliver(self, token: bytes) -> TokenKind | None:
        """Take a token of the peer, or the owner's; its kind, or None if it had already been taken.

        Raises:
            StreamError, SealError: it is not authentic or belongs elsewhere; nothing has changed.
            UserError: it is authentic but impossible in this state; nothing has changed.
        """
        with self._lock:
            if token in self._taken:
                return None
            kind = self._kind(token)
            misses = kind is TokenKind.STARTED and bool(_held(self._outgoing).missing)
            self._commit.step(Event.SERVE if misses else _TAKES[kind])
            self._took(kind, misses=misses)
            self._taken.add(token)
            return kind

    def receipt(self) -> bytes:
        """This side's half of the receipt of the migration that ended last: away from here, or to here.

        Raises:
            UserError: none has ended.
        """
        with self._lock:
            if not self._receipt:
                raise UserError("there is no receipt: no migration by this handler has ended")
            return self._receipt

    def resume_request(self) -> bytes:
        """What the owner must see to let the guest run here again, should the target be lost; changes nothing.

        Raises:
            UserError: the state forbids it: no FINAL was made.
        """
        with self._lock:
            self._commit.require(Event.ASK_OWNER)
            return resumption.request(self.facts, self._owners_secret(), _held(self._outgoing).session)

    def leave_to_processor(self) -> None:
        """The secure processor is to send the guest: nothing can be offered until `reclaim`.

        Raises:
            UserError: a migration by this handler is under way, or the guest is not here.
        """
        with self._lock:
            self._commit.step(Event.YIELD)

    def reclaim(self) -> None:
        """The secure processor sends it no more.

        Raises:
            UserError: it did not.
        """
        with self._lock:
            self._commit.step(Event.RECLAIM)

    # --- source ----------------------------------------------------------------------------------------------

    def offer(self, channels: int = 1) -> bytes:
        """Begin a key exchange: the OFFER message. Ends whatever session there was before FINAL.

        Raises:
            UserError: the owner gave no migration key, `channels` is out of range, or the state forbids it.
            RefusedError: the guest does not say that it can be migrated.
        """
        with self._lock:
            self._commit.require(Event.OFFER)
            self._require_ready()
            _check_channels(channels)
            initiator = Initiator(self.facts, self._owners_secret(), channels)
            self._end_source()
            self._commit.step(Event.OFFER)
            self._initiator = initiator
            self._deadline = self._clock.monotonic() + EXCHANGE_LIMIT_S
            return initiator.offer

    def confirm(self, answer: bytes) -> bytes:
        """Take the ANSWER and begin to log writes; the CONFIRM message.

        A bad answer changes nothing: the true one may still come, until the time limit.

        Raises:
            StreamError, SealError: the answer does not parse, or is not that of the approved target.
            UserError: too late, or no offer was made.
        """
        with self._lock:
            self._commit.require(Event.CONFIRM)
            if self._clock.monotonic() > self._deadline:
                self.cancel()
                raise UserError(f"the target's answer came after {EXCHANGE_LIMIT_S:.0f} s; offer again")
            session, confirm = _held(self._initiator).finish(answer)
            self._outgoing = Outgoing(session, self._guest, self.excluded, self._owners_secret().flags)
            self._commit.step(Event.CONFIRM)
            self._initiator = None
            return confirm

    def ask_for_leg(self) -> bytes:
        """The connections of this migration were lost: a request to the target to go on. Changes nothing by itself.

        Raises:
            UserError: the state forbids it: the guest was stopped for the last round, or no migration is sending.
        """
        with self._lock:
            return self._sending(Event.NEW_LEG).ask_for_leg()

    def begin_leg(self, answer: bytes) -> None:
        """Take the target's answer: rounds may begin again, and what it did not accept is unsent.

        Raises:
            StreamError, SealError: it does not parse, or is not the target's answer to the last request.
            UserError: nothing was asked, or the state forbids it.
        """
        with self._lock:
            self._sending(Event.NEW_LEG).begin_leg(answer)

    def begin_epoch(self) -> tuple[int, int]:
        """Begin a round with every page that is unsent now; its epoch and number of pages.

        Raises:
            UserError: see `Outgoing.begin_epoch`; or the state forbids it.
        """
        with self._lock:
            return self._sending(Event.ROUND).begin_epoch()

    def pull(self, request: Pull, out: memoryview) -> Sealed:
        """Seal the next pages of the round to the front of `out`, which only the platform can write.

        Raises:
            UserError: see `Sealer.pull`; or the state forbids it.
        """
        return self._sending().sealer.pull(request, out)

    def seal_page(self, page: int) -> bytes | None:
        """The record of one page of the round (mailbox); None if it is not, or no more, in the round.

        Raises:
            UserError: see `Sealer.seal_page`; or the state forbids it.
        """
        return self._sending().sealer.seal_page(page)

    def round_pages(self, first: int, limit: int) -> PageNumbers:
        """At most `limit` pages left in the round from page `first` on; for the mailbox, which asks page by page.

        Raises:
            UserError: the state forbids it, or `first` or `limit` is negative.
        """
        if first < 0 or limit < 0:
            raise UserError("pages of a round are listed from page 0 or later, and not fewer than none")
        return self._sending().sealer.listed(first, limit)

    def end_epoch(self, channel: int) -> bytes:
        """The epoch token record that closes the round on one channel; the same bytes until the next one begins.

        Raises:
            UserError: pages are left in the round, no such channel, or the state forbids it.
        """
        return self._sending(Event.ROUND).sealer.end_epoch(channel)

    def unsent_pages(self) -> int:
        """Pages left in the round and pages written since it began: what is still to move.

        Raises:
            UserError: no migration is sending.
        """
        return self._sending().unsent_pages()

    def stop(self) -> None:
        """Enter the last round: from here the guest may not run until a cancel.

        Raises:
            UserError: a vCPU is not stopped, or the state forbids it.
            RefusedError: the guest said meanwhile that it cannot be migrated any more.
        """
        with self._lock:
            self._sending(Event.STOP).check_stopped()
            self._require_ready()  # now that it can take nothing back any more
            self._commit.step(Event.STOP)

    def leave_missing(self) -> int:
        """Leave what is unsent, of the round too, for after the switch: how many pages. The round can be ended then.

        Raises:
            UserError: see `Outgoing.leave_missing`; or the state forbids it.
        """
        with self._lock:
            return self._sending(Event.LEAVE_MISSING).leave_missing()

    def seal_missing(self, page: int) -> bytes | None:
        """The record of a page that the target demands; None if it is not missing there, or was sealed before.

        Raises:
            UserError: no leg has begun, there is no such page, or the state forbids it.
        """
        if not 0 <= page < self.facts.layout.pages:
            raise UserError(f"page {page} is demanded, which is not in RAM")
        return self._sending(Event.SEAL_MISSING).sealer.seal_page(page, postcopy.DEMANDED)

    def seal_state(self, out: memoryview) -> Sealed:
        """Seal the next piece of presence set and machine state; repeat until nothing remains.

        Raises:
            UserError: pages are unsent, the round is not closed, `out` is too small, or the state forbids it.
        """
        with self._lock:
            return self._sending(Event.SEAL_STATE).seal_state(out)

    def close(self) -> bytes:
        """The close record; the same bytes when asked again.

        Raises:
            UserError: a vCPU is not stopped, pages are unsent, state is not sealed, or the state forbids it.
        """
        with self._lock:
            record = self._sending(Event.CLOSE).close()
            self._commit.step(Event.CLOSE)
            return record

    # --- snapshots -------------------------------------------------------------------------------------------

    def save(self, channels: int = 1) -> bytes:
        """Begin a snapshot, and to log writes for it: its header, under keys that no other snapshot has.

        Raises:
            UserError: the owner gave no migration key, `channels` is out of range, or the state forbids it.
            RefusedError: the guest does not say that it can be migrated, so nobody knows which pages are shared.
        """
        with self._lock:
            self._commit.require(Event.SAVE)
            self._require_ready()
            _check_channels(channels)
            session, header = snapshot.begin(self.facts, self._owners_secret(), channels)
            self._outgoing = Outgoing(session, self._guest, self.excluded, self._owners_secret().flags)
            self._commit.step(Event.SAVE)
            return header

    def end_snapshot(self, stream_digest: bytes) -> bytes:
        """End a snapshot that was closed, all bytes of which have that SHA-256: its end. The guest may run on.

        Raises:
            UserError: the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.END_SNAPSHOT)
            end = _held(self._outgoing).desk.make_whole(stream_digest)
            self._commit.step(Event.END_SNAPSHOT)
            self._drop_outgoing()
            return end

    def restore(self, header: bytes) -> None:
        """Take the header of the snapshot that the owner released this receiver for. A bad one changes nothing.

        Raises:
            StreamError, SealError: it does not parse, or is of another guest.
            UserError: the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.RESTORE)
            session = snapshot.follow(self.facts, self._owners_secret(), header)
            self._incoming = Incoming(session, self._guest, self.excluded)
            self._commit.step(Event.RESTORE)

    def take_snapshot(self, end: bytes, stream_digest: bytes) -> None:
        """Take the end of a snapshot of which bytes with that SHA-256 came before it. A bad one aborts this receiver.

        Raises:
            StreamError, SealError: it does not parse, is another snapshot's, or something was altered.
            UserError: the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.TAKE_SNAPSHOT)
            with self._fatal():
                _held(self._incoming).desk.check_whole(end, stream_digest)
                self._commit.step(Event.TAKE_SNAPSHOT)

    # --- target ----------------------------------------------------------------------------------------------

    def answer(self, offer: bytes) -> bytes:
        """Take the OFFER; the ANSWER message. A bad offer changes nothing; a good one is this receiver's only one.

        Raises:
            StreamError, SealError: the offer does not parse, or is for another guest.
            UserError: the owner gave no key, or the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.ANSWER)
            session, answer = respond(self.facts, self._owners_secret(), offer)
            self._incoming = Incoming(session, self._guest, self.excluded)
            self._commit.step(Event.ANSWER)
            self._deadline = self._clock.monotonic() + EXCHANGE_LIMIT_S
            return answer

    def confirmed(self, confirm: bytes) -> None:
        """Take the CONFIRM message; records may come now. A bad one aborts this target.

        Raises:
            StreamError, SealError: it does not parse, or is not the source's.
            UserError: too late, or the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.TAKE_CONFIRM)
            with self._fatal():
                if self._clock.monotonic() > self._deadline:
                    raise UserError(
                        f"the source's confirmation came after {EXCHANGE_LIMIT_S:.0f} s; launch a new receiver"
                    )
                _held(self._incoming).check_confirm(confirm)
                self._commit.step(Event.TAKE_CONFIRM)

    def answer_leg(self, request: bytes) -> bytes:
        """Take the source's request to go on after the connections were lost: the answer. A bad one changes nothing.

        No record of before is opened any more, and what was accepted stays.

        Raises:
            StreamError, SealError: it does not parse, is not the source's, or is older than one taken before.
            UserError: the state forbids it.
        """
        with self._lock:
            self._commit.require(Event.ANSWER_LEG)
            return _held(self._incoming).answer_leg(request)

    def open(self, record: memoryview) -> Opened:
        """Open one record from memory that others can write. Any failure aborts this target, unless its guest runs.

        The close record also checks that all is there, makes holes of all pages the source has none of, and loads
        the machine state: then the handler is PREPARED, or of a snapshot RESTORED.

        Raises:
            StreamError, SealError: the record, or the whole stream, is not what is due.
            UserError: the state forbids it; nothing has changed.
        """
        with self._lock:
            if self._commit.allows(Event.FILL):
                return self._fill(record)
            self._commit.require(Event.OPEN)
            incoming = _held(self._incoming)
        with self._fatal():
            opened = incoming.opener.open(record)
            if opened.kind is RecordKind.CLOSE:
                with self._lock:
                    self._commit.require(Event.ACCEPT)
                    incoming.prepare()
                    self._commit.step(Event.ACCEPT)
                    if self._commit.state is State.PREPARED:
                        self._made[TokenKind.PREPARED] = incoming.desk.make(TokenKind.PREPARED)
            return opened

    def demands(self, limit: int) -> PageNumbers:
        """At most `limit` missing pages that somebody waits for, each once in a leg; none where none is missing."""
        return self._guest.pages.demands(limit)

    # --- inside ----------------------------------------------------------------------------------------------

    def _fill(self, record: memoryview) -> Opened:
        """Take missing pages; behind the last one the guest is whole."""
        incoming = _held(self._incoming)
        filling = _held(incoming.filling)
        pages = filling.open(record)
        missing = filling.missing
        if not missing:
            self._commit.step(Event.MAKE_FILLED)
            self._made[TokenKind.FILLED] = incoming.desk.make(TokenKind.FILLED)
            self._incoming = None
        return Opened(RecordKind.PAGES, pages, missing)

    def _took(self, kind: TokenKind, *, misses: bool) -> None:
        """What follows from a token, of a target that `misses` pages or does not."""
        match kind:
            case TokenKind.ABORTED | TokenKind.RESUME:
                self._end_source()
            case TokenKind.STARTED:
                outgoing = _held(self._outgoing)
                self._state(Side.SOURCE, outgoing.session, outgoing.sealer.carried)
                if misses:
                    outgoing.serve()
                else:
                    self._drop_outgoing()
            case TokenKind.FILLED:
                self._drop_outgoing()
            case _:
                pass  # the step is all

    def _owners_secret(self) -> MigrationSecret:
        if self._secret is None:
            raise UserError(NO_KEY)
        return self._secret

    def _require_ready(self) -> None:
        if not self._guest.machine.ready():
            raise RefusedError(NOT_READY)

    def _sending(self, event: Event = Event.SEND) -> Outgoing:
        with self._lock:
            self._commit.require(event)
            return _held(self._outgoing)

    def _desk(self) -> TokenDesk:
        session = self._outgoing or self._incoming
        if session is None:
            raise SealError("a token came while no migration is under way")
        return session.desk

    def _kind(self, token: bytes) -> TokenKind:
        if self._outgoing is not None and split_token(token)[0].kind is TokenKind.RESUME:
            return resumption.check(token, self._owners_secret(), self._outgoing.session)
        return self._desk().check(token, fenced=self._commit.state is State.FENCED)

    def _make(self, kind: TokenKind) -> None:
        match kind:
            case TokenKind.FINAL:
                self._commit.require(Event.MAKE_FINAL)
                outgoing = _held(self._outgoing)
                outgoing.check_all_sent()
                self._commit.step(Event.MAKE_FINAL)
                self._made[kind] = outgoing.desk.make(kind)
            case TokenKind.STARTED:
                self._commit.require(Event.MAKE_STARTED)
                incoming = _held(self._incoming)
                self._commit.step(Event.MAKE_STARTED if incoming.filling is None else Event.START_FILLING)
                self._made[kind] = incoming.desk.make(kind)
                self._state(Side.TARGET, incoming.session, incoming.opener.carried)
                if incoming.filling is None:
                    self._incoming = None
            case TokenKind.ABORTED if self._incoming is not None and not self._commit.may_run:
                self.cancel()
            case _:
                raise UserError(f"there is no {kind.name} token to fetch in state {self._commit.state.name}")

    def _state(self, side: Side, session: Session, carried: Carried | None) -> None:
        """Make this side's half of the receipt, while the session is still there."""
        self._receipt = receipts.state(side, self.facts, self._owners_secret(), session, carried)

    @contextmanager
    def _fatal(self) -> Iterator[None]:
        """Whatever fails in here is the end of this target."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise

    def _end_target(self) -> None:
        """Destroy the session and its keys, leaving behind the token that says so."""
        if self._incoming is not None:
            self._made[TokenKind.ABORTED] = self._incoming.desk.make(TokenKind.ABORTED)
        self._incoming = None

    def _end_source(self) -> None:
        """Destroy the session, its keys and its tokens: as if it had never been."""
        self._drop_outgoing()
        self._made.pop(TokenKind.FINAL, None)
        self._taken.clear()

    def _drop_outgoing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.end()
        self._outgoing = None
        self._initiator = None


def _check_channels(channels: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"{channels} channels are not possible; ask for 1 to {MAX_CHANNELS}")


def _held(part: T | None) -> T:
    """A part that the commit table says is there."""
    if part is None:
        raise InternalError("the commit table allowed a step whose session is not there")
    return part
