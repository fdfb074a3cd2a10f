"""The two machines a guest can be launched on; each runs its own kind of kernel."""

from __future__ import annotations

from enum import Enum


class MachineType(Enum):
    """What a guest is launched on. A receiver starts alike on both: vCPU 0 alone, which only says that it is ready."""

    BARE = "bare"
    """For our own small guests (ELF files): no interrupt controller, HLT ends a vCPU, and every vCPU starts at the
    start-up code."""
    MICROVM = "microvm"
    """For Linux (a bzImage): in-kernel interrupt controllers and the devices of `sealift.launch.microvm`. Only vCPU 0
    starts; the others wait for its SIPI."""
