"""CPUID as the platform shows it to guests (AMD64 APM volume 3, appendix E; KVM's leaves 0x4000_0000).

The values come from here and never from the VMM: 0x8000_001F tells the guest that its memory is encrypted and
which page-table bit says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from sealift.cpu.choice import compare
from sealift.cpu.description import CpuDescription
from sealift.cpu.flags import FEATURE_WORDS, FeatureWord, bits_of, features_in
from sealift.errors import UserError

Leaf: TypeAlias = tuple[int, int, int, int]
"""eax, ebx, ecx, edx."""

KVM_FEATURE_HC_MAP_GPA_RANGE = 1 << 16
KVM_FEATURE_MIGRATION_CONTROL = 1 << 17

_EPYC_V1 = 0x00800F12
_HYPERVISOR = 1 << 31
# fpu tsc msr pae cx8 pge cmov pat mmx fxsr sse sse2
_EDX_1 = sum(1 << bit for bit in (0, 4, 5, 6, 8, 13, 15, 16, 23, 24, 25, 26))
_ECX_1 = 1 << 0 | 1 << 13 | _HYPERVISOR  # sse3 cx16
_EDX_80000001 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29  # syscall nx 1-GiB pages long mode
_LINEAR_BITS = 48
_SEV_ES = 1 << 3


def leaves(*, vcpu: int, vcpus: int, cbit: int, es: bool = False, plain: bool = False) -> dict[int, Leaf]:
    """All leaves that vCPU `vcpu` of `vcpus` sees; any other leaf reads as zeros.

    A guest that is not confidential (`plain`) has neither SEV nor what KVM offers for it.
    """
    sev, reduced_phys_bits = 1 << 1 | (_SEV_ES if es else 0), 1
    encryption = (0, 0, 0, 0) if plain else (sev, cbit | reduced_phys_bits << 6, 0, 0)
    features = 0 if plain else KVM_FEATURE_HC_MAP_GPA_RANGE | KVM_FEATURE_MIGRATION_CONTROL
    return {
        0x0: (0x1, *_vendor(b"AuthenticAMD")),
        0x1: (_EPYC_V1, vcpu << 24 | vcpus << 16, _ECX_1, _EDX_1),
        0x4000_0000: (0x4000_0001, *_words(b"KVMKVMKVM\0\0\0")),
        0x4000_0001: (features, 0, 0, 0),
        0x8000_0000: (0x8000_001F, *_vendor(b"AuthenticAMD")),
        0x8000_0001: (_EPYC_V1, 0, 1, _EDX_80000001),
        0x8000_0008: (_LINEAR_BITS << 8 | cbit, 0, vcpus - 1, 0),
        0x8000_001F: encryption,
    }


_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")


def described(leaves: Mapping[int, Leaf], name: str) -> CpuDescription:
    """What subleaf 0 of CPUID's leaves says of a CPU, in words."""

    def register(word: FeatureWord) -> int:
        return leaves[word.leaf][_REGISTERS.index(word.register)] if word.subleaf == 0 and word.leaf in leaves else 0

    _, ebx, ecx, edx = leaves[0x0]
    vendor = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx)).decode("ascii", "replace")
    family, model, stepping = signature(leaves[0x1][0])
    return CpuDescription(name, features_in(register), vendor, family, model, stepping)


def signature(eax: int) -> tuple[int, int, int]:
    """Family, model and stepping, of leaf 1's EAX (AMD publication 25481, Fn0000_0001_EAX)."""
    family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
    if family in {0x6, 0xF}:
        model |= eax >> 12 & 0xF0
    if family == 0xF:
        family += eax >> 20 & 0xFF
    return family, model, eax & 0xF


def signature_eax(family: int, model: int, stepping: int) -> int:
    """The inverse of `signature`."""
    extended = max(family - 0xF, 0)
    return extended << 20 | model >> 4 << 16 | (family - extended) << 8 | (model & 0xF) << 4 | stepping


def check_given(wanted: CpuDescription, given: CpuDescription) -> None:
    """Whether an engine that can give guests the CPU `given` can give one `wanted`.

    Raises:
        UserError: it is of another vendor, or features are missing; all of them are named.
    """
    found = compare(wanted, given)
    if found.vendors is not None:
        raise UserError(
            f"the CPU {wanted.name} is of {wanted.vendor}, and guests of the engine {given.name} have one of "
            f"{given.vendor} here; `sealift cpu list` has others"
        )
    if found.missing:
        changes = "".join(f",-{name}" for name in found.missing)
        raise UserError(
            f"the engine {given.name} cannot give a guest the CPU {wanted.name} here: it lacks "
            f"{', '.join(found.missing)} (the rest of it would be --cpu {wanted.name}{changes}; `sealift cpu baseline` "
            "finds what several hosts can give)"
        )


def limited(leaves: Mapping[int, Leaf], wanted: CpuDescription) -> dict[int, Leaf]:
    """Subleaf 0 of CPUID's leaves as a CPU shows it that has no other features than `wanted`, and its signature."""
    kept = {leaf: list(registers) for leaf, registers in leaves.items()}
    for word in FEATURE_WORDS:
        if word.subleaf == 0 and word.leaf in kept:
            kept[word.leaf][_REGISTERS.index(word.register)] &= bits_of(word, wanted.features)
    if wanted.family:
        for leaf in (0x1, 0x8000_0001):
            kept[leaf][0] = signature_eax(wanted.family, wanted.model, wanted.stepping)
    return {leaf: (eax, ebx, ecx, edx) for leaf, (eax, ebx, ecx, edx) in kept.items()}


def _words(text: bytes) -> tuple[int, int, int]:
    first, second, third = (int.from_bytes(text[i : i + 4], "little") for i in (0, 4, 8))
    return first, second, third


def _vendor(name: bytes) -> tuple[int, int, int]:
    """CPUID spreads the vendor over ebx, edx, ecx; returned as ebx, ecx, edx."""
    ebx, edx, ecx = _words(name)
    return ebx, ecx, edx
