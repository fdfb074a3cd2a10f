"""Tokens of a handover that broke off, as files: out of a host, and into the guest that they settle."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Final

from sealift.cli.places import Host
from sealift.cli.qmp_client import QmpClient
from sealift.cli.recipes import read_file
from sealift.cli.watch import moved
from sealift.errors import RefusedError, UserError
from sealift.vmm.migration.stats import MigrationInfo
from sealift.wire.token import split_token

_MEANING: Final = {"STARTED": "the guest runs here", "ABORTED": "the guest does not run here, and never will"}


def exported(host: Host, name: str) -> tuple[bytes, str]:
    """What settles the handover of a guest, as far as this host knows; and what it is, half a sentence.

    At a target: the token that was kept, since no connection brought it to the source. At a fenced source: what its
    handler asks the guest's owner.

    Raises:
        UserError: there is neither.
    """
    path = host.tokens / f"{name}.token"
    if path.exists():
        token = read_file("token", path)
        kind = split_token(token)[0].kind.name
        meaning = _MEANING.get(kind, "made by this host")
        return token, f"the {kind} token that it kept: {meaning}; it is for the source of the guest"
    try:
        with QmpClient(host.run, name) as qmp:
            request = b64decode(str(qmp.execute("x-sealift-resume-request")["request"]))
    except RefusedError as error:
        raise UserError(f"this host has no token of guest {name}: {error}") from None
    return request, "a resume request: for the guest's owner, who may let it run on here (sealift owner resume)"


def brought(qmp: QmpClient, token: bytes) -> str:
    """Bring a guest that is fenced the token of its target, or its owner's; what became of it, in a sentence.

    Raises:
        RefusedError: the guest waits for no token, or not for this one.
    """
    qmp.execute("x-sealift-settle", token=b64encode(token).decode())
    if moved(qmp.query("query-migrate", MigrationInfo)):
        return f"guest {qmp.guest} runs on the target, and has ended here"
    return f"guest {qmp.guest} does not run on the target, and runs on here"
