"""One migration to here, from the answered offer to the guest's start."""

from __future__ import annotations

from sealift.errors import InternalError, SealError
from sealift.guest.handler import legs
from sealift.guest.handler.commit import Role
from sealift.guest.handler.exchange import Session, check_confirm
from sealift.guest.handler.interfaces import Guest
from sealift.guest.handler.opener import Opener
from sealift.guest.handler.postcopy import Filling
from sealift.guest.handler.tokens import TokenDesk
from sealift.pageset import PageSet


class Incoming:
    """The target's session.

    Attributes:
        opener: opens the records of this session's leg.
        desk: makes and checks this session's tokens.
        migration: the migration's id.
        session: who the peer is, and the keys.
        filling: takes what is missing when the guest starts (post-copy); None while nothing is.
    """

    def __init__(self, session: Session, guest: Guest, excluded: PageSet) -> None:
        self.opener = Opener(session, guest.pages, excluded)
        self.desk = TokenDesk(Role.TARGET, session)
        self.migration = session.migration
        self.session = session
        self.filling: Filling | None = None
        self._guest = guest
        self._excluded = excluded

    def answer_leg(self, request: bytes) -> bytes:
        """Take the source's request for a new leg: the answer. What was accepted stays; no record of before is opened.

        After the close record it can only be one for missing pages.

        Raises:
            StreamError, SealError: it does not parse, or is not the source's, or old; nothing has changed.
        """
        if self.filling is not None:
            return self.filling.answer_leg(request)
        asked = legs.asked(self.session, request)
        if asked.epoch <= self.opener.epoch:
            raise SealError(f"a leg is to begin with epoch {asked.epoch}, and {self.opener.epoch} is open already")
        accepted = self.opener.retire()
        self.session, answer = legs.agree(self.session, request, self.session.leg, accepted)
        self.opener = self.opener.follower(self.session, asked.epoch)
        return answer

    def check_confirm(self, confirm: bytes) -> None:
        """The source must have the same keys and have seen the same exchange.

        Raises:
            StreamError, SealError: the message does not parse, or is not the source's.
        """
        check_confirm(self.session, confirm)

    def prepare(self) -> None:
        """After the close record: check that all is there, make holes, load the machine state.

        Pages that never travel are left as they are: they belong to each side's own handler.

        Raises:
            SealError, StreamError: something is missing, or the machine state makes no sense here.
        """
        state = self.opener.finish()
        if self.opener.close_digest is None:
            raise InternalError("a stream was to be accepted before its close record")
        holes = PageSet.full(state.presence.pages)
        holes -= state.presence
        holes -= self._excluded
        self._guest.pages.punch(holes)
        if state.missing:
            self._guest.pages.expect(state.missing)
            self.filling = Filling(self.session, self._guest.pages, state.missing, self.opener.epoch + 1)
        self._guest.machine.load(state.machine)
        self.desk.close_digest = self.opener.close_digest
