"""The launch measurement: what firmware says it put into a guest, under the owner's TIK.

::

    measurement = HMAC-SHA256(TIK, 0x04 || api_major || api_minor || build || policy || launch digest || mnonce)

LAUNCH_MEASURE returns measurement (32 bytes) || mnonce (16). The launch digest is SHA-256 over every measured
buffer in call order; addresses and lengths are not hashed. Firmware older than API 0.17 leaves the first four bytes
out, context and version (AMD SEV API, "LAUNCH_MEASURE"; AMDESE/sev-tool).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from sealift.errors import StreamError
from sealift.sev.policy import Policy

MEASUREMENT_SIZE: Final = 32
MNONCE_SIZE: Final = 16
SIZE: Final = MEASUREMENT_SIZE + MNONCE_SIZE
"""Bytes LAUNCH_MEASURE returns."""

OLDEST_API: Final = (0, 17)
"""First firmware API (major, minor) whose measurements bind the version."""

_CONTEXT: Final = b"\x04"


@dataclass(frozen=True, slots=True, order=True)
class FirmwareVersion:
    """The version a measurement binds: API (major, minor) and build, each one byte.

    Raises:
        StreamError: a number does not fit a byte.
    """

    api_major: int
    api_minor: int
    build_id: int

    def __post_init__(self) -> None:
        numbers = self.api_major, self.api_minor, self.build_id
        if not all(0 <= number <= 0xFF for number in numbers):
            raise StreamError(f"firmware versions are made of bytes, not {numbers}")

    def __str__(self) -> str:
        return f"{self.api_major}.{self.api_minor}.{self.build_id}"

    @property
    def api(self) -> tuple[int, int]:
        """API version alone, as policies state it."""
        return self.api_major, self.api_minor

    def encode(self) -> bytes:
        """Three bytes."""
        return bytes((self.api_major, self.api_minor, self.build_id))


def measure(tik: bytes, version: FirmwareVersion, policy: Policy, launch_digest: bytes, mnonce: bytes) -> bytes:
    """The 48 bytes of LAUNCH_MEASURE for a launch digest and a nonce."""
    bound = _CONTEXT + version.encode() if version.api >= OLDEST_API else b""
    message = bound + policy.encode() + launch_digest + mnonce
    return hmac.digest(tik, message, "sha256") + mnonce


def matches(output: bytes, tik: bytes, version: FirmwareVersion, policy: Policy, launch_digest: bytes) -> bool:
    """Whether a LAUNCH_MEASURE output is the one for this launch digest, in constant time.

    Raises:
        StreamError: wrong length.
    """
    if len(output) != SIZE:
        raise StreamError(f"a launch measurement has {SIZE} bytes, not {len(output)}")
    expected = measure(tik, version, policy, launch_digest, output[MEASUREMENT_SIZE:])
    return hmac.compare_digest(expected, output)
