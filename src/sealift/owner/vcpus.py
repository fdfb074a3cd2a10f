"""The vCPUs of an SEV-ES guest as an owner expects them: the VMSAs that a hypervisor supplies and firmware measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.errors import StreamError
from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, reset_vmsa

DEFAULT_CPU: Final = "EPYC-v4"
"""QEMU's model for SEV guests in its own documentation and in sev-snp-measure's."""

COUNT_LIMIT: Final = 512
"""vCPUs: more than any SEV machine gives one guest."""

DEBUG_SWAP: Final = 0x20
"""SEV_FEATURES where the host swaps debug registers (kvm_amd.debug_swap)."""

_TRIED_COUNTS: Final = 64
_TRIED_UNEXPECTED: Final = 8


@dataclass(frozen=True, slots=True)
class VmsaFiles:
    """VMSAs that the owner has as files.

    Attributes:
        first: of vCPU 0.
        others: of every other vCPU; `first` if there is no file for them.
    """

    first: bytes = field(repr=False)
    others: bytes = field(repr=False)


def vmsa_page(data: bytes) -> bytes:
    """A file's content as a VMSA.

    Raises:
        StreamError: wrong length.
    """
    if len(data) != PAGE_SIZE:
        raise StreamError(f"a VMSA has {PAGE_SIZE} bytes, not {len(data)}")
    return data


@dataclass(frozen=True, slots=True)
class EsVcpus:
    """All vCPUs of one guest.

    Attributes:
        count: how many.
        signature: CPUID leaf 1's EAX.
        fpu: which KVM made the pages.
        features: SEV_FEATURES.
        files: pages to take in place of those.
    """

    count: int
    signature: int = CPU_SIGNATURES[DEFAULT_CPU]
    fpu: FpuProfile = FpuProfile.INIT2
    features: int = 0
    files: VmsaFiles | None = None

    @property
    def source(self) -> str:
        """Where the pages come from, in a word."""
        return self.fpu.value if self.files is None else "file"

    def pages(self, reset_eip: Callable[[], int]) -> Iterator[bytes]:
        """The VMSAs in the order of the vCPUs, as QEMU has them after a reset.

        Args:
            reset_eip: tells where the vCPUs other than the first begin; not asked if there are none.
        """
        if self.files is not None:
            yield self.files.first
            yield from (self.files.others for _ in range(1, self.count))
            return
        yield reset_vmsa(RESET_EIP, self.signature, self.fpu, self.features)
        if self.count > 1:
            other = reset_vmsa(reset_eip(), self.signature, self.fpu, self.features)
            yield from (other for _ in range(1, self.count))

    def variants(self) -> Iterator[tuple[str, EsVcpus]]:
        """Others that differ in one respect, with the words for it."""
        for count in range(1, max(_TRIED_COUNTS, 2 * self.count) + 1):
            if count != self.count:
                yield f"{counted(count)} instead of {self.count}", replace(self, count=count)
        if self.files is not None:
            return
        for fpu in FpuProfile:
            if fpu is not self.fpu:
                yield f"FPU profile {fpu.value} instead of {self.fpu.value}", replace(self, fpu=fpu)
        for signature, name in model_names().items():
            if signature != self.signature:
                words = f"vCPU type {name} ({signature:#x}) instead of {self.signature:#x}"
                yield words, replace(self, signature=signature)
        for features in (0, DEBUG_SWAP):
            if features != self.features:
                yield f"SEV features {features:#x} instead of {self.features:#x}", replace(self, features=features)


def plain_variants() -> Iterator[tuple[str, EsVcpus]]:
    """What vCPUs may have been measured where none were expected."""
    for signature, name in model_names().items():
        for fpu in FpuProfile:
            for count in range(1, _TRIED_UNEXPECTED + 1):
                words = f"the VMSAs of {counted(count)} of type {name}, FPU profile {fpu.value}"
                yield words, EsVcpus(count, signature, fpu)


def counted(count: int) -> str:
    """``1 vCPU``, ``2 vCPUs``."""
    return f"{count} vCPU{'s' if count > 1 else ''}"


def model_names() -> dict[int, str]:
    """One name of QEMU's for every signature, the shortest."""
    names: dict[int, str] = {}
    for name, signature in CPU_SIGNATURES.items():
        names.setdefault(signature, name)
    return names
