"""Where firmware versions differ in what others can see: one profile per behaviour, chosen when a processor is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.sev.measurement import FirmwareVersion
from sealift.sev.packet import Context

VERSION: Final = FirmwareVersion(api_major=1, api_minor=55, build_id=25)
"""What this firmware says it is: AMD's 1.55.25, whose behaviour it follows."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One firmware's observable choices.

    Attributes:
        version: what it says it is.
        vmsa_context: first byte under the MAC of SEND_UPDATE_VMSA's packets.
    """

    version: FirmwareVersion
    vmsa_context: Context


AMD_1_55_25: Final = Profile(VERSION, Context.DATA)
"""AMD's published source, which seals VMSA pages with the context byte of data.

So a VMM can have a page of memory received as a vCPU's registers: one that it filled itself, by way of a device, makes
the guest do whatever it likes, SEV-ES or not.
"""

NUMBERED_CONTEXTS: Final = Profile(VERSION, Context.VMSA)
"""Firmware that gives VMSA packets the number which the enumeration keeps for them; platform processes have it."""
