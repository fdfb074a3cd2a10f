"""SHA-256 over the handler's own code.

The platform compares it with the measured start-up table and refuses to start a handler that is not the one the
owner's measurement speaks of; owners keep a list of digests they accept.

Covered are the sources, as the import system reads them, of every module of this package and of all modules of this
project that they import, directly or not. Left out is `sealift.sev`, AMD's formats, which the platform's firmware
brings and its build id speaks for. A test holds `MODULES` against the real imports.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from importlib.abc import InspectLoader

from sealift.errors import InternalError

_PACKAGE = "sealift.guest.handler"

MODULES = (
    "sealift",
    "sealift.address",
    "sealift.errors",
    "sealift.guest",
    _PACKAGE,
    f"{_PACKAGE}.channels",
    f"{_PACKAGE}.commit",
    f"{_PACKAGE}.digest",
    f"{_PACKAGE}.exchange",
    f"{_PACKAGE}.handler",
    f"{_PACKAGE}.incoming",
    f"{_PACKAGE}.interfaces",
    f"{_PACKAGE}.keys",
    f"{_PACKAGE}.legs",
    f"{_PACKAGE}.mailbox",
    f"{_PACKAGE}.opener",
    f"{_PACKAGE}.outgoing",
    f"{_PACKAGE}.postcopy",
    f"{_PACKAGE}.receipts",
    f"{_PACKAGE}.resumption",
    f"{_PACKAGE}.rounds",
    f"{_PACKAGE}.sealer",
    f"{_PACKAGE}.snapshot",
    f"{_PACKAGE}.state",
    f"{_PACKAGE}.tokens",
    "sealift.launch",
    "sealift.launch.secrets",
    "sealift.pageset",
    "sealift.wire",
    "sealift.wire.handshake",
    "sealift.wire.leg",
    "sealift.wire.lookout",
    "sealift.wire.mailbox",
    "sealift.wire.receipt",
    "sealift.wire.record",
    "sealift.wire.resume",
    "sealift.wire.token",
)
"""In the order they are hashed; each counts with its name and its length."""

_FIELD = struct.Struct("<Q")


def handler_digest() -> bytes:
    """SHA-256 over names and sources of `MODULES`, 32 bytes.

    Raises:
        InternalError: a module has no source to hash.
    """
    digest = hashlib.sha256()
    for name in MODULES:
        for part in (name.encode(), _source(name)):
            digest.update(_FIELD.pack(len(part)) + part)
    return digest.digest()


def _source(name: str) -> bytes:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec and isinstance(spec.loader, InspectLoader) else None
    if source is None:
        raise InternalError(f"module {name} has no source to hash, so the handler cannot prove what it is")
    return source.encode()
