"""The conversation between a VMM and the owner of a guest.

::

    VMM                                                owner
     │── PlatformEvidence ──────── begin ─────────────►│  verifies the platform
     │◄─────────────────────────────── SessionGrant ───│
     │   LAUNCH_START, LAUNCH_UPDATE_*, LAUNCH_MEASURE │
     │── measurement ───────────── release ───────────►│  verifies what was launched
     │◄─────────────────────────────── SecretGrant ────│
     │   LAUNCH_SECRET, LAUNCH_FINISH                  │

`begin_receiver` stands for `begin` on a migration's target, `begin_restore` where a snapshot is restored, and
`judge_receiver` only asks what the former would say. Nothing in
these messages is secret and none of it is believed: session and secret are readable by the verified platform alone. A
refusal is a `RefusedError` with the owner's reason.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from sealift.sev import certificate, chain, packet, secret, session
from sealift.wire.obstacle import Obstacle

CA_CHAIN_LIMIT: Final = 3200
"""ASK||ARK with 4096-bit keys, the largest there are."""
LAUNCH_ID_LENGTH: Final = 32

Certificate: TypeAlias = Annotated[bytes, Meta(min_length=certificate.SIZE, max_length=certificate.SIZE)]
CertChain: TypeAlias = Annotated[bytes, Meta(min_length=chain.CERT_CHAIN_SIZE, max_length=chain.CERT_CHAIN_SIZE)]
CaChain: TypeAlias = Annotated[bytes, Meta(max_length=CA_CHAIN_LIMIT)]
Byte: TypeAlias = Annotated[int, Meta(ge=0, le=0xFF)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
LaunchId: TypeAlias = Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{LAUNCH_ID_LENGTH}}}\Z")]
"""Hexadecimal; names one launch in an owner's records."""


class PlatformEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a platform says of itself before a launch.

    Attributes:
        pdh: the platform's Diffie-Hellman certificate.
        cert_chain: PEK||OCA||CEK, the CEK as the manufacturer signed it.
        ca_chain: ASK||ARK.
        api_major: firmware's API version; with the next two, what measurements bind.
        api_minor: see `api_major`.
        build_id: firmware's build.
        handler_digest: SHA-256 of the migration handler the platform loaded.
    """

    pdh: Certificate
    cert_chain: CertChain
    ca_chain: CaChain
    api_major: Byte
    api_minor: Byte
    build_id: Byte
    handler_digest: Digest


class SessionGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What LAUNCH_START takes, and the name under which to ask for the secret."""

    launch_id: LaunchId
    policy: Annotated[int, Meta(ge=0, lt=1 << 32)]
    dh_cert: Certificate
    session: Annotated[bytes, Meta(min_length=session.SIZE, max_length=session.SIZE)]


class SecretGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What LAUNCH_SECRET takes; where the secret goes, the start-up table says."""

    header: Annotated[bytes, Meta(min_length=packet.HEADER_SIZE, max_length=packet.HEADER_SIZE)]
    payload: Annotated[bytes, Meta(max_length=secret.SIZE_LIMIT)]


class OwnerService(Protocol):
    """An owner, near or far."""

    def begin(self, evidence: PlatformEvidence) -> SessionGrant:
        """Start a launch of the guest itself.

        Raises:
            RefusedError: the owner does not want its guest on that platform.
        """

    def begin_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> SessionGrant:
        """Start a launch that is to receive the guest whose LAUNCH_MEASURE output (48 bytes) is given.

        Raises:
            RefusedError: there is no such guest, or it may not go there.
        """

    def judge_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> tuple[Obstacle, ...]:
        """Say everything for which `begin_receiver` would refuse; nothing is begun."""

    def begin_restore(self, evidence: PlatformEvidence, header: bytes) -> SessionGrant:
        """Start a launch that is to restore the one snapshot with that header (`sealift.wire.handshake`, SNAPSHOT).

        Raises:
            RefusedError: it is of no guest of this owner, or may not be restored there.
        """

    def release(self, launch_id: str, measure: bytes) -> SecretGrant:
        """Verify a launch by its LAUNCH_MEASURE output, and only then release its secret, once.

        Raises:
            RefusedError: what was launched is not what the owner expects, or the secret has been released.
        """
