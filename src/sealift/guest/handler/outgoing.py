"""One migration away from here, from the confirmed exchange to its end: what is unsent, sealed, and closed."""

from __future__ import annotations

import hashlib

from sealift.errors import UserError
from sealift.guest.handler.channels import Sealed
from sealift.guest.handler.commit import Role
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import Guest
from sealift.guest.handler.legs import LegInitiator
from sealift.guest.handler.postcopy import Serving
from sealift.guest.handler.sealer import Sealer
from sealift.guest.handler.state import HandlerState
from sealift.guest.handler.tokens import TokenDesk
from sealift.launch.secrets import MigrationFlags
from sealift.pageset import PageSet

_EPOCHS_AHEAD = 2
"""A new leg's first epoch, counted from the source's: the target may have closed that one, and so be at the next.

Post-copy's as well: the next one is that of the machine state.
"""


class Outgoing:
    """The source's session; the caller serialises all but the sealer's own calls.

    Attributes:
        sealer: seals the records of this session's leg.
        desk: makes and checks this session's tokens.
        migration: the migration's id.
        session: who the peer is, and the keys.
        missing: pages that are left for after the switch (post-copy).
    """

    def __init__(self, session: Session, guest: Guest, excluded: PageSet, flags: MigrationFlags) -> None:
        """Everything the guest has is unsent; `flags` are what its owner allows."""
        self._skip_zeros = MigrationFlags.SKIP_ZERO_PAGES in flags
        self.sealer = Sealer(session, guest.pages, skip_zeros=self._skip_zeros)
        self.desk = TokenDesk(Role.SOURCE, session)
        self.migration = session.migration
        self.session = session
        self._guest = guest
        self._excluded = excluded
        self._sent = PageSet(guest.pages.pages)
        self._close = b""
        self.missing = PageSet(guest.pages.pages)
        self._leg: LegInitiator | None = None
        self._serving: Serving | None = None
        # Writes are always logged: a page that fills meanwhile is in the log, in the populated set, or in both.
        guest.unsent.put_back(guest.pages.populated())

    def ask_for_leg(self) -> bytes:
        """The connections were lost: the request for a new leg. Nothing changes before the target's answer.

        Post-copy begins with one.
        """
        if self._serving is not None:
            return self._serving.ask_for_leg()
        if self._leg is None:
            self._leg = LegInitiator(self.session, self.session.leg + 1, self.sealer.epoch + _EPOCHS_AHEAD)
        else:  # the target may have taken the request before, and its answer was lost
            self._leg = LegInitiator(self.session, self._leg.leg + 1, self._leg.epoch + 1)
        return self._leg.request

    def begin_leg(self, answer: bytes) -> None:
        """Take the target's answer: what it did not accept is unsent again, and goes in the next round.

        Raises:
            UserError: none is waited for.
            StreamError, SealError: it does not parse, or is not the target's; nothing has changed.
        """
        if self._serving is not None:
            self.sealer = self._serving.begin_leg(answer)
            return
        if self._leg is None:
            raise UserError("no new leg was asked for")
        session, said = self._leg.finish(answer)
        self._guest.unsent.put_back(self.sealer.surrender(said.accepted))
        self.sealer = Sealer(session, self._guest.pages, skip_zeros=self._skip_zeros, epoch=self._leg.epoch - 1)
        self.session, self._leg = session, None

    def leave_missing(self) -> int:
        """The guest is stopped: whatever is unsent goes after the switch, if it comes to that; how many pages.

        Raises:
            UserError: the guest is not stopped, or the state is sealed.
        """
        self.check_stopped()
        if self.sealer.has_state:
            raise UserError("the machine state is already sealed; close the stream, or cancel")
        left = self._guest.unsent.take()
        left |= self.sealer.leave_rest()
        left -= self._excluded
        self._sent |= left
        self.missing |= left
        return len(self.missing)

    def serve(self) -> None:
        """The target runs the guest and misses pages: the next leg, and all that follow, are about those."""
        self._serving = Serving(
            self.session,
            self._guest.pages,
            self.missing,
            self.sealer.epoch + _EPOCHS_AHEAD,
            skip_zeros=self._skip_zeros,
        )

    def end(self) -> None:
        """Seal nothing more."""
        self.sealer.retire()

    def begin_epoch(self) -> tuple[int, int]:
        """Begin a round with every page that is unsent now; its epoch and number of pages.

        Raises:
            UserError: the round before is not closed on every channel, or the state is sealed.
        """
        self.sealer.check_ready_for_epoch()
        pages = self._guest.unsent.take()
        pages -= self._excluded
        self._sent |= pages
        count = len(pages)
        return self.sealer.begin_epoch(pages), count

    def unsent_pages(self) -> int:
        """Pages left in the round, and pages written since it began."""
        return self.sealer.remaining + self._guest.unsent.count()

    def check_stopped(self) -> None:
        """The guest must be stopped.

        Raises:
            UserError: it is not.
        """
        if not self._guest.machine.stopped():
            raise UserError("the guest's vCPUs are not stopped; stop the guest first")

    def check_all_sent(self) -> None:
        """The guest must be stopped, every round closed and nothing unsent.

        Raises:
            UserError: something is missing, and what.
        """
        self.check_stopped()
        self.sealer.check_epoch_ended()
        unsent = self._guest.unsent.count()
        if unsent:
            raise UserError(f"{unsent} pages were written since the last round; begin another one first")

    def seal_state(self, out: memoryview) -> Sealed:
        """Seal the next piece of presence set and machine state, which are taken at the first call.

        Present is what was sent, or is left for after the switch: a page that was no hole at first, or written since.
        Reading can populate a hole too, with zeros, which it is at the target without being sent.

        Raises:
            UserError: see `check_all_sent`; or `out` is too small.
        """
        if not self.sealer.has_state:
            self.check_all_sent()
            self.sealer.set_state(HandlerState(self._sent, self.missing, self._guest.machine.save()).encode())
        return self.sealer.seal_state(out)

    def close(self) -> bytes:
        """The close record; the same bytes when asked again.

        Raises:
            UserError: see `check_all_sent`; or state is left to seal.
        """
        if not self._close:
            self.check_all_sent()
            self._close = self.sealer.close()
            self.desk.close_digest = hashlib.sha256(self._close).digest()
        return self._close
