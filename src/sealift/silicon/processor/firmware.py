"""The secure processor's firmware: SEV commands with the checks, and the order of checks, of AMD's.

A command either does all it says or raises `FirmwareError` with the status code silicon would give, and changes
nothing. Platform and guest states are the tables in ``states``; the commands stand by concept in modules of their
own, which share ``core``. Firmware reaches guest memory only through the `FirmwareMemory` that LAUNCH_START or
RECEIVE_START is given, one per guest.
"""

from __future__ import annotations

from sealift.silicon.processor.core import GUEST_SLOTS
from sealift.silicon.processor.debug import DebugCommands
from sealift.silicon.processor.guest import FirmwareMemory
from sealift.silicon.processor.guests import GuestCommands
from sealift.silicon.processor.launch import LaunchCommands
from sealift.silicon.processor.platform import INIT_ES, PlatformCommands
from sealift.silicon.processor.profile import VERSION
from sealift.silicon.processor.receive import ReceiveCommands
from sealift.silicon.processor.send import SendCommands

__all__ = ["GUEST_SLOTS", "INIT_ES", "VERSION", "FirmwareMemory", "SecureProcessor"]


class SecureProcessor(PlatformCommands, GuestCommands, LaunchCommands, SendCommands, ReceiveCommands, DebugCommands):
    """One secure processor, with every command of ``states``; not thread-safe.

    Args:
        identity: the host's.
        profile: which firmware it behaves as.
    """
