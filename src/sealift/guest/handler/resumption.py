"""The way back of a source whose target was lost behind FINAL: the owner's word (`sealift.wire.resume`)."""

from __future__ import annotations

from sealift.errors import SealError
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.keys import mac, mac_matches
from sealift.launch.secrets import MigrationSecret, resume_key, resume_request_key
from sealift.wire.resume import ResumeRequest
from sealift.wire.token import NO_CLOSE, TokenKind, split_token


def request(facts: LaunchFacts, secret: MigrationSecret, session: Session) -> bytes:
    """What the owner is told of the migration that left this source fenced."""
    body = ResumeRequest(session.migration, secret.instance_id, facts.measure, session.peer).body()
    return body + mac(resume_request_key(secret.key), body)


def check(data: bytes, secret: MigrationSecret, session: Session) -> TokenKind:
    """The kind of a token, which is RESUME if it is the owner's word on this migration.

    Raises:
        StreamError: it does not parse.
        SealError: it is about another migration, or not the owner's.
    """
    token, found = split_token(data)
    if token.migration != session.migration or token.close_digest != NO_CLOSE:
        raise SealError("a RESUME token is about another migration")
    if not mac_matches(resume_key(secret.key), token.body(), found):
        raise SealError("a RESUME token is not this guest's owner's")
    return token.kind
