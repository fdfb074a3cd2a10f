"""The ABI levels of x86-64, as its psABI and QEMU's table of CPU models have them.

Features have QEMU's property names. OSFXSR and OSXSAVE, which the psABI lists too, are bits of an operating system and
of no CPU. A level includes those below it.
Source: x86-64 psABI, "Micro-Architecture Levels"; QEMU ``docs/system/cpu-models-x86-abi.csv``.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

LEVELS: Final = {
    "baseline": frozenset(["cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"]),
    "v2": frozenset(["cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"]),
    "v3": frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"]),
    "v4": frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
}
"""What each level asks for beyond the one before, lowest first."""


def levels_of(features: AbstractSet[str]) -> tuple[str, ...]:
    """The levels a CPU with these features reaches, lowest first."""
    reached = []
    for level, needed in LEVELS.items():
        if not needed <= features:
            break
        reached.append(level)
    return tuple(reached)


def missing_for(level: str, features: AbstractSet[str]) -> list[str]:
    """What such a CPU lacks to reach `level`, in alphabetical order."""
    names = list(LEVELS)
    below = names[: names.index(level) + 1]
    return sorted(frozenset().union(*(LEVELS[name] for name in below)) - features)
