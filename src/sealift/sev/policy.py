"""The guest policy: 32 bits chosen by the owner and enforced by firmware (AMD SEV API, "Guest Policy").

Bits 0-5 are flags, 6-15 are reserved, 16-23 and 24-31 the lowest firmware API version (major, minor) that may
run the guest.
"""

from __future__ import annotations

from enum import KEEP, IntFlag
from typing import Final

from sealift.errors import UserError

POLICY_LIMIT: Final = 1 << 32
_RESERVED: Final = 0xFFC0
_VERSION_PREFIX: Final = "api="


class Policy(IntFlag, boundary=KEEP):
    """Flags of a guest policy; the API version is kept in the same integer, as on the wire."""

    NODBG = 1 << 0
    """Debugging of the guest is disallowed."""
    NOKS = 1 << 1
    """Sharing keys with other guests is disallowed."""
    ES = 1 << 2
    """SEV-ES is required."""
    NOSEND = 1 << 3
    """Sending the guest to another platform by the secure processor is disallowed."""
    DOMAIN = 1 << 4
    """The guest may be sent only to platforms of the same owner certificate."""
    SEV = 1 << 5
    """The guest may be sent only to genuine SEV platforms."""

    @property
    def api(self) -> tuple[int, int]:
        """Lowest firmware API version (major, minor) the guest accepts."""
        return self >> 16 & 0xFF, self >> 24 & 0xFF

    @property
    def reserved(self) -> int:
        """The reserved bits that are set; firmware refuses any."""
        return self & _RESERVED

    def encode(self) -> bytes:
        """Four bytes, little-endian: the form every MAC covers."""
        return int(self).to_bytes(4, "little")

    def warnings(self) -> tuple[str, ...]:
        """What lets the guest's host learn its memory, as warnings; none under the default policy."""
        found = []
        if Policy.NODBG not in self:
            found.append(
                "warning: without nodbg the policy lets the guest's host read and change its memory (DBG_DECRYPT)"
            )
        if not self & (Policy.NOSEND | Policy.DOMAIN | Policy.SEV):
            found.append(
                "warning: with none of nosend, domain and sev the policy lets the guest's host send it to whatever "
                "claims to be a platform (SEND_START), and read it there"
            )
        return tuple(found)

    def describe(self) -> str:
        """The policy in the words `parse_policy` reads, such as ``nodbg,nosend,api=1.55``; 0 is ``0``."""
        words = [flag.name.lower() for flag in type(self) if flag in self and flag.name]
        if any(self.api):
            words.append(f"{_VERSION_PREFIX}{self.api[0]}.{self.api[1]}")
        if self.reserved:
            words.append(hex(self.reserved))
        return ",".join(words) or "0"


DEFAULT_POLICY: Final = Policy.NODBG | Policy.NOSEND
"""No debugging, and no migration by SEND_*, whose packets can be received more than once."""


def parse_policy(text: str | int) -> Policy:
    """Read a policy from a number or from words joined by commas.

    Each word is a flag's name, ``api=MAJOR.MINOR`` or a number (decimal, or hexadecimal with ``0x``); the
    policy is their union, so ``9``, ``0x9`` and ``nodbg,nosend`` are the same.

    Raises:
        UserError: an unknown word, or a number that does not fit 32 bits.
    """
    policy = Policy(0)
    words = [str(text)] if isinstance(text, int) else text.split(",")
    for word in words:
        policy |= _parse_word(word.strip().lower())
    return policy


def _parse_word(word: str) -> Policy:
    if word.upper() in Policy.__members__:
        return Policy[word.upper()]
    try:
        if word.startswith(_VERSION_PREFIX):
            major, minor = (int(part) for part in word.removeprefix(_VERSION_PREFIX).split("."))
            if 0 <= major <= 0xFF and 0 <= minor <= 0xFF:
                return Policy(major << 16 | minor << 24)
        elif 0 <= (number := int(word, 0)) < POLICY_LIMIT:
            return Policy(number)
    except ValueError:
        pass
    names = ", ".join(name.lower() for name in Policy.__members__)
    raise UserError(f"{word!r} is no guest policy; use a 32-bit number or words out of {names}, api=MAJOR.MINOR")
