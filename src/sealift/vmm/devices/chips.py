"""Interrupt controllers, timer and clock, which KVM plays inside the platform: a device as far as migration goes."""

from __future__ import annotations

from sealift.vmm.platform import Platform
from sealift.wire.platform import Chips, GetChips, SetChips


class KernelChips:
    """Their state is the VMM's, as on silicon, and travels in clear."""

    name = "kvm-chips"
    version = 1

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def save(self) -> bytes:
        """What KVM has."""
        return self._platform.request(GetChips(), Chips).state

    def restore(self, state: bytes) -> None:
        """Load `save`'s state; vCPUs have theirs already, which take interrupts from here."""
        self._platform.do(SetChips(state))

    def quiesce(self) -> None:
        """They stand still with the vCPUs."""

    def resume(self) -> None:
        """They go on with the vCPUs."""
