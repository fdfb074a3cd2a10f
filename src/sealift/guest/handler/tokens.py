"""Making and checking commit tokens: each side MACs with its own key and checks with the peer's."""

from __future__ import annotations

from sealift.errors import SealError
from sealift.guest.handler.commit import Role
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.keys import mac, mac_matches
from sealift.wire.token import NO_CLOSE, Token, TokenKind, split_token, whole_digest


class TokenDesk:
    """The tokens of one migration, seen from one side.

    Attributes:
        close_digest: SHA-256 of the close record that this side made or accepted; `NO_CLOSE` before.
    """

    def __init__(self, role: Role, session: Session) -> None:
        keys = session.keys
        self._migration = session.migration
        match role:
            case Role.SOURCE:
                self._own, self._peer = keys.tokens_source, keys.tokens_target
            case Role.TARGET:
                self._own, self._peer = keys.tokens_target, keys.tokens_source
        self.close_digest = NO_CLOSE

    def make(self, kind: TokenKind) -> bytes:
        """This side's token of that kind, about the stream as this side knows it."""
        return self._sealed(Token(kind, self._migration, self.close_digest))

    def make_whole(self, stream_digest: bytes) -> bytes:
        """The token that ends a snapshot, whose bytes so far have that SHA-256."""
        return self._sealed(Token(TokenKind.SNAPSHOT, self._migration, whole_digest(self.close_digest, stream_digest)))

    def _sealed(self, token: Token) -> bytes:
        body = token.body()
        return body + mac(self._own, body)

    def check(self, data: bytes, *, fenced: bool) -> TokenKind:
        """The kind of an authentic token of the peer, about this very stream.

        An ABORTED may also say that the target accepted no close record; not once this side is `fenced`, for then
        the target had accepted one.

        Raises:
            StreamError: it does not parse.
            SealError: it is of another migration, not made by the peer, or about another stream.
        """
        token = self._authentic(data)
        if token.kind is TokenKind.SNAPSHOT:
            raise SealError("a SNAPSHOT token ends a snapshot, and has no place in a migration")
        if token.kind is TokenKind.RESUME:
            raise SealError("a RESUME token is the owner's, and for a fenced source")
        unclosed = token.kind is TokenKind.ABORTED and token.close_digest == NO_CLOSE and not fenced
        if token.close_digest != self.close_digest and not unclosed:
            raise SealError(f"a {token.kind.name} token is about another stream than this one")
        return token.kind

    def check_whole(self, data: bytes, stream_digest: bytes) -> None:
        """Check the token that ends a snapshot, of which bytes with that SHA-256 came before it.

        Raises:
            StreamError: it does not parse.
            SealError: it ends another snapshot, was not made by the source, or is about other bytes.
        """
        token = self._authentic(data)
        if token.kind is not TokenKind.SNAPSHOT:
            raise SealError(f"a {token.kind.name} token cannot end a snapshot")
        if token.close_digest != whole_digest(self.close_digest, stream_digest):
            raise SealError("the snapshot was altered: its last token is about other bytes than those before it")

    def _authentic(self, data: bytes) -> Token:
        """The peer's claims in this migration."""
        token, found = split_token(data)
        if token.migration != self._migration:
            raise SealError(f"a {token.kind.name} token belongs to another migration or snapshot")
        if not mac_matches(self._peer, token.body(), found):
            raise SealError(f"a {token.kind.name} token is not authentic")
        return token
