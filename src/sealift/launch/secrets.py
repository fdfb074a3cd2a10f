"""Our own entries in the launch secret: the migration key, and data an owner plants for the guest.

The owner adds a `MigrationSecret` to every launch it lets migrate. The guest's migration handler takes it out of
the secret area, leaving zeros, before the first guest instruction; no entry, no guest-assisted migration.
Its data is little-endian: version u32, flags u32, instance id 16, migration key R 32, and for a receiver the pair
key 32, or the snapshot key 32 of what it is to restore; a bit among the flags tells which.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sealift.errors import StreamError
from sealift.sev import measurement
from sealift.sev.secret import SecretEntry, find_entries

MIGRATION_GUID: Final = UUID("617c13cf-01ab-4b5b-bf41-4c2aeb27d4a2")
"""Entry of a MigrationSecret."""
GUEST_GUID: Final = UUID("b74ec4ff-d1c7-4c97-bf9b-9c06de39e13d")
"""Entry of data the owner plants for the guest's own use."""

KEY_SIZE: Final = 32
INSTANCE_ID_SIZE: Final = 16
VERSION: Final = 1

_HEADER: Final = struct.Struct(f"<II{INSTANCE_ID_SIZE}s{KEY_SIZE}s")


class MigrationFlags(IntFlag):
    """What the owner lets the handler do."""

    SKIP_ZERO_PAGES = 1 << 0
    """Look at content to leave that of zero pages out, which tells the VMM how many there are, and where."""


NO_FLAGS: Final = MigrationFlags(0)
_KNOWN_FLAGS: Final = sum(int(flag) for flag in MigrationFlags)
_RESTORES: Final = 1 << 31
"""The second key is a snapshot key: this launch restores, and takes no migration."""


@dataclass(frozen=True, slots=True)
class MigrationSecret:
    """What an owner gives the migration handler of one launch; keys are never shown.

    Attributes:
        instance_id: names the guest through all its hops, 16 bytes.
        key: R, this launch's migration key, 32 bytes.
        pair_key: shared with the source's handler; None unless the launch is a receiver.
        flags: what the owner allows.
        snapshot_key: opens the one snapshot that this launch is to restore; None unless it is such a receiver.

    Raises:
        ValueError: a field has the wrong size, or the launch is to receive in two ways.
    """

    instance_id: bytes
    key: bytes = field(repr=False)
    pair_key: bytes | None = field(default=None, repr=False)
    flags: MigrationFlags = NO_FLAGS
    snapshot_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.pair_key is not None and self.snapshot_key is not None:
            raise ValueError("a receiver takes a migration or a snapshot, not both")
        sizes = [len(self.instance_id), len(self.key), len(self.pair_key or self.snapshot_key or bytes(KEY_SIZE))]
        if sizes != [INSTANCE_ID_SIZE, KEY_SIZE, KEY_SIZE]:
            raise ValueError(f"instance id and keys have 16, 32 and 32 bytes, not {sizes}")

    def encode(self) -> bytes:
        """The entry's data."""
        flags = self.flags | (0 if self.snapshot_key is None else _RESTORES)
        fixed = _HEADER.pack(VERSION, flags, self.instance_id, self.key)
        return fixed + (self.pair_key or self.snapshot_key or b"")

    @classmethod
    def decode(cls, data: bytes) -> MigrationSecret:
        """Read an entry's data.

        Raises:
            StreamError: wrong length, unknown version, or a flag this version does not know.
        """
        if len(data) not in {_HEADER.size, _HEADER.size + KEY_SIZE}:
            raise StreamError(f"a migration secret does not have {len(data)} bytes")
        version, flags, instance_id, key = _HEADER.unpack_from(data)
        if version != VERSION:
            raise StreamError(f"migration secrets of version {version} are unknown here; version 1 is expected")
        if flags & ~(_KNOWN_FLAGS | _RESTORES):
            raise StreamError(f"the migration secret has unknown flags {flags:#x}")
        allowed, second = MigrationFlags(flags & _KNOWN_FLAGS), data[_HEADER.size :] or None
        if not flags & _RESTORES:
            return cls(instance_id, key, second, allowed)
        if second is None:
            raise StreamError("the migration secret is for a restore and holds no snapshot key")
        return cls(instance_id, key, flags=allowed, snapshot_key=second)

    def entry(self) -> SecretEntry:
        """The secret table's entry for this."""
        return SecretEntry(MIGRATION_GUID, self.encode())


def take_migration_secret(table: bytearray | memoryview) -> MigrationSecret | None:
    """Take the migration secret out of a secret area, zeroing its data there.

    Args:
        table: the area's memory, changed in place; it may be longer than the table.

    Returns:
        The secret, or None if the owner gave none.

    Raises:
        StreamError: the table or the entry does not parse, or there are two entries; they are zeroed even so.
    """
    places = [place for place in find_entries(table) or () if place.guid == MIGRATION_GUID]
    taken = [bytes(table[place.start : place.end]) for place in places]
    for place in places:
        table[place.start : place.end] = bytes(place.end - place.start)
    if len(taken) > 1:
        raise StreamError(f"the secret table holds {len(taken)} migration secrets; one is expected")
    return MigrationSecret.decode(taken[0]) if taken else None


def pair_key(source_key: bytes, receiver_measure: bytes) -> bytes:
    """The key two handlers share, which both the owner and the source can compute.

    Args:
        source_key: R of the launch that is left.
        receiver_measure: the whole LAUNCH_MEASURE output (48 bytes) of the launch that receives.

    Raises:
        ValueError: the measurement has the wrong size.
    """
    if len(receiver_measure) != measurement.SIZE:
        raise ValueError(f"a LAUNCH_MEASURE output has {measurement.SIZE} bytes, not {len(receiver_measure)}")
    return _derived(source_key, b"pair" + receiver_measure)


def snapshot_key(source_key: bytes, header: bytes) -> bytes:
    """The key of one snapshot, which only the guest's handler and its owner can compute.

    Args:
        source_key: R of the launch that the snapshot is of.
        header: the snapshot's whole header: a snapshot id that never comes twice, and all that a restore must agree on.
    """
    return _derived(source_key, b"snapshot" + hashlib.sha256(header).digest())


def receipt_key(key: bytes) -> bytes:
    """What a launch's handler MACs its half of a migration's receipt with; `key` is R of that launch."""
    return _derived(key, b"receipt")


def resume_request_key(key: bytes) -> bytes:
    """What a fenced source's handler MACs its request to the owner with; `key` is R of its launch."""
    return _derived(key, b"resume request")


def resume_key(key: bytes) -> bytes:
    """What the owner MACs its RESUME token with; `key` is R of the fenced source's launch."""
    return _derived(key, b"resume")


def _derived(source_key: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_SIZE, salt=None, info=info).derive(source_key)
