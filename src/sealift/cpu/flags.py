"""Names of CPU features, by their place in CPUID; QEMU's property names.

Source: AMD64 APM volume 3 appendix E, Intel SDM volume 2 (CPUID), Linux ``Documentation/virt/kvm/x86/cpuid.rst``.
A dash is a bit without a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FeatureWord:
    """A register of CPUID in which every bit is a feature of its own; `names` are those of its bits, from 0."""

    leaf: int
    subleaf: int
    register: str
    names: tuple[str, ...]


def _word(leaf: int, subleaf: int, register: str, names: str) -> FeatureWord:
    return FeatureWord(leaf, subleaf, register, tuple(names.split()))


FEATURE_WORDS: Final = (
    _word(
        0x1,
        0,
        "ecx",
        "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca "
        "sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    _word(
        0x1,
        0,
        "edx",
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx "
        "fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    _word(0x6, 0, "eax", "- - arat"),
    _word(
        0x7,
        0,
        "ebx",
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm pqm zero-fcs-fds "
        "mpx rdt-a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf "
        "avx512er avx512cd sha-ni avx512bw avx512vl",
    ),
    _word(
        0x7,
        0,
        "ecx",
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 cet-ss gfni vaes vpclmulqdq avx512vnni "
        "avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid kl bus-lock-detect cldemote - movdiri "
        "movdir64b enqcmd sgxlc pks",
    ),
    _word(
        0x7,
        0,
        "edx",
        "- - avx512-4vnniw avx512-4fmaps fsrm uintr - - avx512-vp2intersect srbds-ctrl md-clear "
        "rtm-always-abort - tsx-force-abort serialize hybrid tsx-ldtrk - pconfig arch-lbr cet-ibt - amx-bf16 "
        "avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities core-capability ssbd",
    ),
    _word(
        0x7,
        1,
        "eax",
        "sha512 sm3 sm4 rao-int avx-vnni avx512-bf16 lass cmpccxadd arch-perfmon-ext - fzrm fsrs fsrc - - - - "
        "fred lkgs wrmsrns - amx-fp16 hreset avx-ifma - - lam - - - - -",
    ),
    _word(
        0xD,
        0,
        "eax",
        "xstate-x87 xstate-sse xstate-avx mpx-bndregs mpx-bndcsr avx512-opmask avx512-zmm-hi256 avx512-hi16-zmm - pkru",
    ),
    _word(
        0xD,
        1,
        "eax",
        "xsaveopt xsavec xgetbv1 xsaves",
    ),
    _word(
        0x4000_0001,
        0,
        "eax",
        "kvmclock kvm-nopiodelay kvm-mmu kvmclock2 kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - "
        "kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int "
        "kvm-msi-ext-dest-id kvm-hc-map-gpa-range kvm-migration-control - - - - - - kvmclock-stable-bit",
    ),
    _word(
        0x8000_0001,
        0,
        "ecx",
        "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt "
        "- lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
    ),
    _word(
        0x8000_0001,
        0,
        "edx",
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx "
        "fxsr fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    _word(0x8000_0007, 0, "edx", "- - - - - - - - invtsc"),
    _word(
        0x8000_0008,
        0,
        "ebx",
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - "
        "- - - amd-ssbd virt-ssbd amd-no-ssb - amd-psfd",
    ),
    _word(
        0x8000_000A,
        0,
        "edx",
        "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid decodeassists - - pause-filter - pfthreshold "
        "avic - v-vmsave-vmload vgif - - - - - - - - - - - svme-addr-chk",
    ),
    _word(
        0x8000_0021,
        0,
        "eax",
        "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs",
    ),
)


def flag_name(word: FeatureWord, bit: int) -> str:
    """The name of one bit; where it has none, its place."""
    if bit < len(word.names) and word.names[bit] != "-":
        return word.names[bit]
    return f"CPUID {word.leaf:#x}.{word.subleaf} {word.register.upper()} bit {bit}"


_EVERY_BIT: Final = 0xFFFF_FFFF
_OF_THE_HYPERVISOR: Final = "hypervisor"
_OF_NO_CPU: Final = frozenset({(0xD, 0), (0x4000_0001, 0)})
"""State components, and what the hypervisor itself offers."""


def features_in(register: Callable[[FeatureWord], int]) -> frozenset[str]:
    """The CPU's features that have a name and are set; `register` finds a word's value."""
    return frozenset(
        name
        for word in FEATURE_WORDS
        if (word.leaf, word.subleaf) not in _OF_NO_CPU
        for bit, name in enumerate(word.names)
        if name not in {"-", _OF_THE_HYPERVISOR} and register(word) >> bit & 1
    )


def bits_of(word: FeatureWord, features: frozenset[str]) -> int:
    """The bits that a CPU with just these features may have set in a register.

    All of what is not the CPU's own: state components, what the hypervisor offers, and that there is one.
    """
    if (word.leaf, word.subleaf) in _OF_NO_CPU:
        return _EVERY_BIT
    kept = features | {_OF_THE_HYPERVISOR}
    return sum(1 << bit for bit, name in enumerate(word.names) if name in kept)
