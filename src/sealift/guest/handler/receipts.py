"""This side's half of a migration's receipt (`sealift.wire.receipt`), made when the guest runs on the target."""

from __future__ import annotations

from sealift.errors import InternalError
from sealift.guest.handler.channels import Carried
from sealift.guest.handler.exchange import Session
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.keys import mac
from sealift.launch.secrets import MigrationSecret, receipt_key
from sealift.wire.receipt import MAC_SIZE, Side, Statement


def state(side: Side, facts: LaunchFacts, secret: MigrationSecret, session: Session, carried: Carried | None) -> bytes:
    """The statement of a side, under the key of its own launch; empty for a restore, which has no other side."""
    if not session.peer:
        return b""
    if carried is None:
        raise InternalError("a receipt was to be made of a stream that was never closed")
    launches = (facts.measure, session.peer) if side is Side.SOURCE else (session.peer, facts.measure)
    statement = Statement(
        side,
        session.migration.hex(),
        secret.instance_id.hex(),
        launches[0].hex(),
        launches[1].hex(),
        carried.records,
        carried.pages,
        carried.length,
        carried.digest.hex(),
        bytes(MAC_SIZE).hex(),
    )
    return statement.body() + mac(receipt_key(secret.key), statement.body())
