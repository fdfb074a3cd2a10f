"""New legs of a migration whose connections were lost (`sealift.wire.leg`): who asks and answers, and the new keys.

Only records get new keys. Tokens are about the migration, whatever its leg, and the session's secret stays until the
migration ends: an answer that is lost must not leave the two sides with different ones.
"""

from __future__ import annotations

import os
from dataclasses import replace

from sealift.errors import SealError, UserError
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.keys import LegSecrets, derive_leg, mac, mac_matches
from sealift.wire.leg import (
    MAX_LEG,
    NONCE_SIZE,
    LegAnswer,
    LegRequest,
    split_leg_answer,
    split_leg_request,
)


class LegInitiator:
    """The source's side of one new leg.

    Attributes:
        request: the message for the target.
        leg: the new leg's number.
        epoch: its first epoch.
    """

    def __init__(self, session: Session, leg: int, epoch: int) -> None:
        """Ask for leg number `leg`, whose first epoch is `epoch`.

        Raises:
            UserError: there are no more legs.
        """
        if leg > MAX_LEG:
            raise UserError("this migration has used up its legs; cancel it and begin another one")
        self.leg, self.epoch = leg, epoch
        self._session = session
        self._secrets = LegSecrets.of(session.keys)
        self._nonce = os.urandom(NONCE_SIZE)
        body = LegRequest(session.migration, leg, epoch, self._nonce).body()
        self.request = body + mac(self._secrets.request, body)

    def finish(self, data: bytes) -> tuple[Session, LegAnswer]:
        """Take the answer; the session of the new leg, and what the target says of those before.

        Raises:
            StreamError: it does not parse.
            SealError: it is about another leg, or not the target's.
        """
        answer, found = split_leg_answer(data)
        if not mac_matches(self._secrets.answer, self.request + answer.body(), found):
            raise SealError("the target's leg answer is not authentic, or not about this request")
        if (answer.migration, answer.leg) != (self._session.migration, self.leg):
            raise SealError("the target's leg answer is about another leg")
        if len(answer.accepted) != self._session.channels:
            raise SealError(f"the target's leg answer is about {len(answer.accepted)} channels")
        return _next(self._session, self.leg, self._nonce, answer.nonce), answer


def asked(session: Session, data: bytes) -> LegRequest:
    """What an authentic request asks of this target.

    Raises:
        StreamError: it does not parse.
        SealError: it is about another migration, an earlier leg, or not the source's.
    """
    request, found = split_leg_request(data)
    if request.migration != session.migration:
        raise SealError("a leg request is about another migration")
    if not mac_matches(LegSecrets.of(session.keys).request, request.body(), found):
        raise SealError("a leg request is not authentic")
    if request.leg <= session.leg:
        raise SealError(f"a leg request asks for leg {request.leg}, and this is leg {session.leg} already")
    return request


def agree(session: Session, data: bytes, before: int, accepted: tuple[int, ...]) -> tuple[Session, bytes]:
    """The session of the new leg that the authentic request `data` asks for, and the answer.

    `accepted` are the records that were opened of every channel in leg `before`.
    """
    request = split_leg_request(data)[0]
    answer = LegAnswer(session.migration, request.leg, os.urandom(NONCE_SIZE), before, accepted)
    sealed = mac(LegSecrets.of(session.keys).answer, data + answer.body())
    return _next(session, request.leg, request.nonce, answer.nonce), answer.body() + sealed


def _next(session: Session, leg: int, source: bytes, target: bytes) -> Session:
    return replace(session, leg=leg, keys=derive_leg(session.keys, leg, source + target))
