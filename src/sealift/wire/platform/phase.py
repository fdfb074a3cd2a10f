"""Where a VM is in its life."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """Where a VM is in its life, as far as the platform is concerned."""

    EMPTY = "empty"
    """No VM yet."""
    CREATED = "created"
    """RAM exists; no launch has started."""
    LAUNCHING = "launching"
    """LAUNCH_START succeeded; the image is being measured (launch-update, launch-secret)."""
    RUNNING = "running"
    """Launched; vCPUs may run."""
    INCOMING = "incoming"
    """Its handler receives a migration."""
    SENDING = "sending"
    """Its secure processor sends it (SEND_START); vCPUs may run meanwhile."""
    RECEIVING = "receiving"
    """Its secure processor receives it (RECEIVE_START)."""
    STOPPED = "stopped"
    """Its handler has closed the outgoing stream; a cancel leads back to running."""
    FENCED = "fenced"
    """Handed over: only the target's answer (or the owner) decides."""
    GONE = "gone"
    """It runs elsewhere, or will run nowhere."""
    PLAIN = "plain"
    """It is not confidential: the VMM has memory and registers in clear, and runs the vCPUs as it likes."""
