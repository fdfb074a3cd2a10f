"""Keys of one migration, all derived from one key exchange.

``HKDF-SHA256(salt = pair key, input = X25519 shared secret, info = label ‖ SHA-256(transcript))``: whoever lacks the
pair key, or saw one bit of the transcript differently, has other keys.

A snapshot has no peer and so no exchange: ``HKDF-SHA256(input = snapshot key, info = "snapshot: " ‖ label ‖
SHA-256(header))``. Who gets hold of the migration key can open every snapshot that was made under it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_SIZE = 32

_LABELS = {
    "records_forward": b"sealift records source to target",
    "records_backward": b"sealift records target to source",
    "tokens_source": b"sealift tokens of source",
    "tokens_target": b"sealift tokens of target",
    "confirm_source": b"sealift confirmation of source",
    "confirm_target": b"sealift confirmation of target",
    "session": b"sealift session secret",
}
"""Purpose of each key; a label is never used for two."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one migration, 32 bytes each; never shown.

    Attributes:
        records_forward: seals records from source to target; `records_backward` the other way.
        tokens_source: MACs the source's tokens; `tokens_target` the target's.
        confirm_source: MACs the source's CONFIRM; `confirm_target` the target's ANSWER.
        session: what a later leg's keys are derived from.
    """

    records_forward: bytes = field(repr=False)
    records_backward: bytes = field(repr=False)
    tokens_source: bytes = field(repr=False)
    tokens_target: bytes = field(repr=False)
    confirm_source: bytes = field(repr=False)
    confirm_target: bytes = field(repr=False)
    session: bytes = field(repr=False)


def derive(pair_key: bytes, shared: bytes, transcript: bytes) -> SessionKeys:
    """All keys of one exchange; `transcript` is its SHA-256."""
    return SessionKeys(
        **{
            name: HKDF(SHA256(), KEY_SIZE, salt=pair_key, info=label + transcript).derive(shared)
            for name, label in _LABELS.items()
        }
    )


def derive_snapshot(snapshot_key: bytes, header: bytes) -> SessionKeys:
    """All keys of one snapshot; `header` is the SHA-256 of its header. There is no way back, so some are unused."""
    return SessionKeys(
        **{
            name: HKDF(SHA256(), KEY_SIZE, salt=None, info=b"snapshot: " + label + header).derive(snapshot_key)
            for name, label in _LABELS.items()
        }
    )


@dataclass(frozen=True, slots=True)
class LegSecrets:
    """Keys of the messages about new legs, from a session's secret; never shown."""

    request: bytes = field(repr=False)
    answer: bytes = field(repr=False)

    @classmethod
    def of(cls, keys: SessionKeys) -> LegSecrets:
        """Those of one migration."""
        return cls(_from_session(keys, b"sealift leg request"), _from_session(keys, b"sealift leg answer"))


def derive_leg(keys: SessionKeys, leg: int, nonces: bytes) -> SessionKeys:
    """The keys of a later leg: new ones for records, from the source's and the target's nonce."""
    info = leg.to_bytes(4, "little") + nonces
    return replace(
        keys,
        records_forward=_from_session(keys, b"sealift leg records source to target" + info),
        records_backward=_from_session(keys, b"sealift leg records target to source" + info),
    )


def _from_session(keys: SessionKeys, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_SIZE, salt=None, info=info).derive(keys.session)


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return hmac.digest(key, message, "sha256")


def mac_matches(key: bytes, message: bytes, found: bytes) -> bool:
    """Whether `found` is `message`'s HMAC, compared in constant time."""
    return hmac.compare_digest(mac(key, message), found)
