"""The owner's word that a guest runs on at a source whose target was lost (`sealift.wire.resume`)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sealift.errors import RefusedError, SealError
from sealift.launch.secrets import resume_key, resume_request_key
from sealift.owner.ledger import Launch, Ledger
from sealift.wire.resume import split_request
from sealift.wire.token import NO_CLOSE, Token, TokenKind


@dataclass(frozen=True, slots=True)
class LostMigration:
    """A migration whose outcome nobody but the owner can decide.

    Attributes:
        migration: its id, 16 bytes.
        source: the launch that is fenced.
        target: the launch that may have the guest.
    """

    migration: bytes
    source: Launch
    target: Launch

    def token(self) -> bytes:
        """The RESUME token; the same whenever it is asked for."""
        body = Token(TokenKind.RESUME, self.migration, NO_CLOSE).body()
        return body + hmac.digest(resume_key(self.source.key), body, "sha256")


def judge(data: bytes, ledger: Ledger) -> LostMigration:
    """Find the launches that a resume request is about.

    Raises:
        StreamError: it is no resume request.
        RefusedError: it names launches that this owner did not release for each other.
        SealError: the source's handler did not make it.
        UserError: the owner's records are damaged.
    """
    request, found = split_request(data)
    source = ledger.find_released(request.source)
    if source is None:
        raise RefusedError(f"the source is no launch that this owner released: {request.source.hex()}")
    made = hmac.digest(resume_request_key(source.key), request.body(), "sha256")
    if not hmac.compare_digest(made, found) or request.instance_id != source.instance_id:
        raise SealError("the resume request was not made by the handler of the launch that it names")
    target = ledger.find_released(request.target)
    if target is None or target.source != source.launch_id:
        raise RefusedError(
            f"the target is no launch that this owner released to receive from launch {source.launch_id}: "
            f"{request.target.hex()}"
        )
    return LostMigration(request.migration, source, target)
