"""Whom an owner trusts, as a file in its directory."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from typing import Final

import msgspec

from sealift.errors import StreamError, UserError
from sealift.owner.receivers import ANYWHERE, ReceiverRule
from sealift.privatefiles import Access, PrivateDirectory
from sealift.wire.packed import UNDECODABLE

FINGERPRINT_SIZE: Final = hashlib.sha256().digest_size

_FILE: Final = "settings.json"
_LIMIT: Final = 1 << 20
"""Bytes of the settings: room for some 5,000 rules."""


class RestoreRule(enum.Enum):
    """Whether snapshots may be restored; every restore takes a guest back to what it was."""

    ALLOWED = "allowed"
    """Wherever guests may go."""
    REFUSED = "refused"
    """Nowhere; until an owner says otherwise, for any VMM can save its guest, and fork it by that."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An owner's settings; nothing in them is secret, but who can change them can have the guest.

    Attributes:
        roots: fingerprints of pinned ARKs.
        handlers: digests of accepted migration handlers.
        receivers: where guests may go.
        restores: whether snapshots may be restored.
    """

    roots: tuple[bytes, ...] = ()
    handlers: tuple[bytes, ...] = ()
    receivers: tuple[ReceiverRule, ...] = (ANYWHERE,)
    restores: RestoreRule = RestoreRule.REFUSED


def load(directory: PrivateDirectory) -> Settings:
    """The settings as they are now; without a file, an owner that trusts nobody.

    Raises:
        UserError: the file is damaged or open to others.
    """
    if not directory.has(_FILE):
        return Settings()
    try:
        return msgspec.json.decode(directory.read(_FILE, _LIMIT), type=Settings)
    except UNDECODABLE as error:
        raise UserError(f"the owner's settings in {directory.path / _FILE} do not parse") from error


def change(directory: PrivateDirectory, edit: Callable[[Settings], Settings]) -> None:
    """Replace the settings by what `edit` makes of them; changes by several processes follow each other."""
    with directory.locked(Access.CHANGE):
        edited = msgspec.json.encode(edit(load(directory)))
        directory.write(_FILE, msgspec.json.format(edited))


def including(known: tuple[bytes, ...], fingerprint: bytes) -> tuple[bytes, ...]:
    """`known` with one more, once.

    Raises:
        StreamError: it is no SHA-256 value.
    """
    if len(fingerprint) != FINGERPRINT_SIZE:
        raise StreamError(f"a fingerprint or digest has {FINGERPRINT_SIZE} bytes, not {len(fingerprint)}")
    return tuple(sorted({*known, fingerprint}))
