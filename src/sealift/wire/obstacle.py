"""What can stand in the way of a migration: each kind has a code that never changes its meaning.

Scripts look at the code; the sentence is for people and names what to do. Source, target, platform and owner each say
what they know (`sealift.vmm.migration.preflight` collects it), so the list is whole and not just its first line.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Code(enum.Enum):
    """What it is; sealift check's CODE column and JSON."""

    # The guest, wherever it is to go.
    GUEST_STATE = "guest-state"
    """It is neither running nor paused."""
    UNDERWAY = "migration-underway"
    """Another migration of it has begun."""
    NO_HANDLER = "no-handler"
    """It has no migration handler (method mh)."""
    NO_KEY = "no-key"
    """Its owner gave its handler no migration key (method mh)."""
    NOT_READY = "guest-not-ready"
    """It does not say that it can be migrated."""
    NOSEND = "policy-nosend"
    """Its policy forbids its secure processor to send it (method psp)."""

    # The way there.
    UNREACHABLE = "target-unreachable"
    """Nobody answers there, or not in the words of this version."""
    NOT_ASKED = "target-not-asked"
    """The way is a single connection that was handed over, so the target was not asked."""
    SLOW_PATH = "slow-path"
    """The way is so slow that the first round alone takes very long."""
    CLOCK_SKEW = "clock-skew"
    """The hosts' clocks differ: certificates and logs will not agree, nor will times in the guest."""

    # The target's host.
    METHOD = "method-unknown"
    """It does not know the migration method."""
    TRANSFER = "transfer-unknown"
    """It does not know the way records enter its handler."""
    MACHINE = "machine-unknown"
    """It does not know the machine type."""
    ENGINE = "engine-differs"
    """Its engine cannot read what this one saves of a vCPU."""
    CPU = "cpu-features"
    """Its CPU lacks what the guest uses."""
    CBIT = "c-bit"
    """It has too few address bits for the guest's C-bit."""
    TYPE = "guest-type"
    """It takes no guest of this type: confidential, or plain."""
    ES = "es-unsupported"
    """It cannot run guests with SEV-ES."""
    SHAPE = "shape-unsupported"
    """It takes no guest of so much memory or so many vCPUs."""
    RAM_SHORT = "ram-short"
    """It has less memory available than the guest has."""
    RAM_TIGHT = "ram-tight"
    """It would have next to none left."""
    DISKS_MISSING = "disks-missing"
    """It was given more or fewer disk images than the guest has disks, or cannot open one."""
    DISK_DIFFERS = "disk-differs"
    """One of its disk images is not like the guest's disk."""
    FIRMWARE = "firmware-old"
    """Its firmware is older than the guest's policy allows."""
    DOMAIN = "policy-domain"
    """Its platform has another owner, which the guest's policy excludes (method psp)."""
    HANDLER = "handler-not-accepted"
    """The guest's owner does not accept its migration handler (method mh)."""
    HANDLER_DIFFERS = "handler-differs"
    """It has another version of the migration handler, which the owner accepts."""
    OWNER = "owner-refuses"
    """The guest's owner does not want it there, or does not know it (method mh)."""


WARNINGS: Final = frozenset({Code.NOT_ASKED, Code.SLOW_PATH, Code.CLOCK_SKEW, Code.RAM_TIGHT, Code.HANDLER_DIFFERS})
"""What a migration can live with."""


class Obstacle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that stands in the way, in a sentence."""

    code: Code
    sentence: str

    @property
    def blocks(self) -> bool:
        """Whether no migration is possible as long as it is there."""
        return self.code not in WARNINGS
