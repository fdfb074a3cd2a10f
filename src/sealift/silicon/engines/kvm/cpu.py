"""The CPU a guest sees under KVM: what the host can give, less what would tie the guest to it, plus the C-bit.

A description of a CPU is the table of CPUID as vCPU 0 sees it. It travels with the guest, so that a target can refuse
before the first byte, and shows its guest the very same CPU. Whatever says that memory is encrypted comes from here
and never from a VMM.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from sealift.cpu.description import CpuDescription
from sealift.cpu.flags import FEATURE_WORDS, bits_of, features_in, flag_name
from sealift.errors import StreamError, UserError
from sealift.silicon.engines import cpuid
from sealift.silicon.engines.cpuid import KVM_FEATURE_HC_MAP_GPA_RANGE, KVM_FEATURE_MIGRATION_CONTROL
from sealift.silicon.engines.kvm import abi
from sealift.wire.packed import unpack

CBIT_LIMIT: Final = 47
"""The C-bit of EPYC 7001 and 7002; hosts with fewer physical address bits take their topmost one."""

_ENTRIES_LIMIT: Final = abi.CPUID_ROOM

_SIGNIFICANT_INDEX: Final = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

_TOPOLOGY: Final = frozenset({0xB, 0x1F, 0x8000_001D, 0x8000_001E, 0x8000_0026, 0x4, 0x2})
"""How the host's processors and caches are laid out: nothing of a guest's."""
_HIDDEN: Final = frozenset(
    {0x5, 0x6, 0xA, 0xF, 0x10, 0x12, 0x14, 0x15, 0x16, 0x1D, 0x1E, 0x23, 0x8000_001A, 0x8000_001B, 0x8000_0022}
)
"""Monitor, power, counters, resource control, enclaves, tracing, clock rates, tiles: none of it could be moved."""

_XSAVE_FEATURES: Final = 0x2E7
"""x87, SSE, AVX, AVX-512 (three parts), PKRU: what fits the 4096 bytes of KVM_GET_XSAVE."""
_COMPONENTS: Final = {"xsave": 1 << 0 | 1 << 1, "avx": 1 << 2, "avx512f": 7 << 5, "pku": 1 << 9}
"""The components of XSAVE's state that features bring along."""
_LEGACY_AREA: Final = 576
"""Bytes of an XSAVE area with x87 and SSE alone: 512, and a header of 64."""
_BRAND: Final = (0x8000_0002, 0x8000_0003, 0x8000_0004)
"""The processor's name, 16 characters each."""
_AMX: Final = 1 << 22 | 1 << 24 | 1 << 25
_ALL: Final = 0xFFFF_FFFF
_MAX_EXTENDED: Final = 0x8000_001F

_EDITS: Final[dict[tuple[int, int], dict[str, tuple[int, int]]]] = {
    # MONITOR; the TSC deadline timer, of which hosts know by another way; and a guest knows that it is one.
    # EBX tells of the processor that was asked.
    (0x1, 0): {"ebx": (0xFF00, 0), "ecx": (~(1 << 3 | 1 << 24), 1 << 31)},
    (0x7, 0): {"edx": (~_AMX, 0)},
    (0xD, 0): {"eax": (_XSAVE_FEATURES, 0), "edx": (0, 0)},
    # XSAVES and XFD have state of their own.
    (0xD, 1): {"eax": (~(1 << 3 | 1 << 4), 0), "ebx": (0, 0), "ecx": (0, 0), "edx": (0, 0)},
    (0x4000_0000, 0): {"eax": (0, 0x4000_0001)},
    # Asynchronous page faults are told to the guest by writes at moments of the host's own choice.
    (0x4000_0001, 0): {
        "eax": (~(1 << 4 | 1 << 10 | 1 << 14), KVM_FEATURE_HC_MAP_GPA_RANGE | KVM_FEATURE_MIGRATION_CONTROL)
    },
    (0x8000_0000, 0): {"eax": (0, _MAX_EXTENDED)},
    (0x8000_0001, 0): {"ecx": (~(1 << 2 | 1 << 22), 0)},  # SVM, and the extended topology leaves
    # An invariant TSC ties a guest to one host's clock.
    (0x8000_0007, 0): {"eax": (0, 0), "ebx": (0, 0), "ecx": (0, 0), "edx": (0, 0)},
    (0x8000_000A, 0): {"eax": (0, 0), "ebx": (0, 0), "ecx": (0, 0), "edx": (0, 0)},
}
"""What becomes of a register: what is kept of it, and what is set besides."""

_X2APIC: Final = 1 << 21

_SEV, _REDUCED_PHYS_BITS = 1 << 1, 1
_ADDRESS_SIZES: Final = 0x8000_0008
_LEAST_WIDTH: Final = 36
"""Physical address bits of a CPU that does not say."""

_NEEDED: Final = (0x0, 0x1, 0x4000_0000, 0x4000_0001, 0x8000_0000, 0x8000_0001, _ADDRESS_SIZES)
"""Leaves without which a guest would not find that it is one, or that its memory is encrypted."""

_INDEXED: Final = frozenset({0x7, 0xD})
_DECIDED: Final = frozenset({function for function, _ in _EDITS} | {*_NEEDED, _MAX_EXTENDED})
"""Leaves of which it is decided here what a guest sees; of these, `_INDEXED` have several, by the index in ECX."""

keep = msgspec.structs.replace

_Word = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """One entry of the CPUID table; `index` counts only where `flags` says so."""

    function: _Word
    index: _Word
    flags: _Word
    eax: _Word
    ebx: _Word
    ecx: _Word
    edx: _Word


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU as guests of this engine see it.

    Attributes:
        entries: its CPUID table, for vCPU 0.
    """

    entries: tuple[Entry, ...]

    def encode(self) -> bytes:
        """For messages and streams."""
        return msgspec.msgpack.encode(self.entries)

    @classmethod
    def decode(cls, data: bytes) -> Cpu:
        """Parse `encode`.

        Raises:
            StreamError: it does not parse.
        """
        entries = unpack(data, tuple[Entry, ...], "the description of the guest's CPU")
        if len(entries) > _ENTRIES_LIMIT:
            raise StreamError(f"the description of the guest's CPU has more than {_ENTRIES_LIMIT} entries")
        return cls(entries)

    @property
    def cbit(self) -> int:
        """Position of the C-bit."""
        return self.find(_MAX_EXTENDED).ebx & 0x3F

    def table(self, vcpu: int, vcpus: int) -> abi.Cpuid2:
        """CPUID of one vCPU, for KVM_SET_CPUID2."""
        entries = [_for_vcpu(entry, vcpu, vcpus) for entry in self.entries]
        table = abi.Cpuid2(nent=len(entries))
        for place, entry in zip(table.entries, entries, strict=False):
            for name in Entry.__struct_fields__:
                setattr(place, name, getattr(entry, name))
        return table

    def missing_on(self, host: Cpu) -> list[str]:
        """Names of the features that this CPU has and `host` cannot give."""
        names = []
        for word in FEATURE_WORDS:
            wanted = getattr(self.find(word.leaf, word.subleaf), word.register)
            given = getattr(host.find(word.leaf, word.subleaf), word.register)
            lacking = wanted & ~given
            names += [flag_name(word, bit) for bit in range(32) if lacking >> bit & 1]
        return names

    def described(self, name: str) -> CpuDescription:
        """The same in words."""
        leaves = {leaf: _registers(self.find(leaf)) for leaf in (0x0, 0x1)}
        whole = cpuid.described(leaves, name)
        return keep(
            whole, features=features_in(lambda word: int(getattr(self.find(word.leaf, word.subleaf), word.register)))
        )

    def find(self, function: int, index: int = 0) -> Entry:
        """The entry of a leaf; zeros if there is none."""
        for entry in self.entries:
            if entry.function == function and (entry.index == index or not entry.flags & _SIGNIFICANT_INDEX):
                return entry
        return Entry(function, index, 0, 0, 0, 0, 0)


def _registers(entry: Entry) -> cpuid.Leaf:
    return entry.eax, entry.ebx, entry.ecx, entry.edx


def host_cpu(supported: Iterable[abi.CpuidEntry2], *, irqchip: bool, cbit: int | None = None) -> Cpu:
    """The best CPU this host can give: with the C-bit where it is wanted, or else where it fits best.

    Raises:
        UserError: the host has too few physical address bits for that C-bit.
    """
    whole = Cpu(tuple(Entry(*(getattr(entry, name) for name in Entry.__struct_fields__)) for entry in supported))
    width = whole.find(_ADDRESS_SIZES).eax & 0xFF or _LEAST_WIDTH
    position = min(CBIT_LIMIT, width - 1) if cbit is None else cbit
    if position > width - 1:
        raise UserError(
            f"the guest's C-bit is bit {position} of physical addresses; this host has {width} such bits, "
            f"so bit {width - 1} is the highest it could give"
        )
    kept = [_restricted(entry) for entry in whole.entries if not _hidden(entry)]
    if not irqchip:
        kept = [keep(entry, ecx=entry.ecx & ~_X2APIC) if entry.function == 0x1 else entry for entry in kept]
    return with_cbit(Cpu(tuple(kept)), position)


def limited(host: Cpu, wanted: CpuDescription) -> Cpu:
    """A host's CPU with no other features than `wanted`, of which it has all; with that one's signature and name."""
    features = {(word.leaf, word.subleaf, word.register): bits_of(word, wanted.features) for word in FEATURE_WORDS}
    components = sum(bits for name, bits in _COMPONENTS.items() if name in wanted.features)
    signature = cpuid.signature_eax(wanted.family, wanted.model, wanted.stepping) if wanted.family else None
    brand = struct.unpack("<12I", wanted.name.encode().ljust(48, b"\0")[:48])

    def of(entry: Entry) -> Entry:
        masked = keep(
            entry,
            **{
                name: getattr(entry, name) & features.get((entry.function, entry.index, name), _ALL)
                for name in ("eax", "ebx", "ecx", "edx")
            },
        )
        if entry.function in {0x1, 0x8000_0001} and signature is not None:
            return keep(masked, eax=signature)
        if entry.function in _BRAND:
            eax, ebx, ecx, edx = brand[4 * _BRAND.index(entry.function) :][:4]
            return keep(masked, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
        if (entry.function, entry.index) == (0xD, 0):
            return keep(masked, eax=entry.eax & components, ecx=_xsave_size(host, entry.eax & components))
        return masked

    return Cpu(tuple(of(entry) for entry in host.entries if _has_state(entry, components)))


def _has_state(entry: Entry, components: int) -> bool:
    """Whether a CPU with these state components has such an entry."""
    return entry.function != 0xD or (bool(components) if entry.index < 2 else bool(components >> entry.index & 1))


def _xsave_size(host: Cpu, components: int) -> int:
    """Bytes of an XSAVE area with all of these components, in the standard format."""
    extended = (host.find(0xD, index) for index in range(2, 32) if components >> index & 1)
    return max([_LEGACY_AREA, *(entry.ebx + entry.eax for entry in extended)])


def brought(described: Cpu, host: Cpu) -> Cpu:
    """The CPU of a guest that arrives, as a VMM describes it: nothing that would be hidden here can be brought along.

    Raises:
        StreamError: it lacks what tells a guest where it is.
        UserError: this host cannot give it.
    """
    for leaf in _NEEDED:
        if not any(entry.function == leaf for entry in described.entries):
            raise StreamError(f"the description of the guest's CPU has no leaf {leaf:#x}")
    _check_unambiguous(described)
    kept = Cpu(tuple(_restricted(entry) for entry in described.entries if not _hidden(entry)))
    check_offered(kept, host)
    return with_cbit(kept, host.cbit)


def _check_unambiguous(described: Cpu) -> None:
    """KVM answers by the first entry that fits; none may stand where the entry that is decided here would not be it.

    Raises:
        StreamError: one does.
    """
    places: set[tuple[int, int]] = set()
    for entry in described.entries:
        indexed = bool(entry.flags & _SIGNIFICANT_INDEX)
        odd = entry.flags & ~_SIGNIFICANT_INDEX or (entry.index and not indexed)
        if odd or (entry.function in _DECIDED and indexed != (entry.function in _INDEXED)):
            raise StreamError(
                f"leaf {entry.function:#x} of the guest's CPU has an index or flags that no such leaf has"
            )
        if (entry.function, entry.index) in places:
            raise StreamError(f"leaf {entry.function:#x} of the guest's CPU is there twice")
        places.add((entry.function, entry.index))


def with_cbit(described: Cpu, cbit: int) -> Cpu:
    """A CPU with all that the platform alone says about memory encryption."""
    # The C-bit must not be a reserved bit of page-table entries, so it counts as one of the address bits.
    entries = [
        keep(entry, eax=entry.eax & 0xFF00 | cbit + 1) if entry.function == _ADDRESS_SIZES else entry
        for entry in described.entries
        if entry.function != _MAX_EXTENDED
    ]
    return Cpu((*entries, Entry(_MAX_EXTENDED, 0, 0, _SEV, cbit | _REDUCED_PHYS_BITS << 6, 0, 0)))


def check_offered(wanted: Cpu, host: Cpu) -> None:
    """Whether a host can show a guest the CPU it comes with.

    Raises:
        UserError: features are missing; all of them are named.
    """
    missing = wanted.missing_on(host)
    if missing:
        raise UserError(
            f"this host's CPU lacks what the guest uses: {', '.join(missing)}; start guests with the --cpu that "
            "`sealift cpu baseline` finds for both hosts"
        )


def _hidden(entry: Entry) -> bool:
    """What no guest sees, or (state components beyond those that travel) not all of."""
    if entry.function == 0xD and entry.index >= 2:
        return not (entry.index < 32 and _XSAVE_FEATURES >> entry.index & 1)
    return entry.function in _TOPOLOGY or entry.function in _HIDDEN


def _restricted(entry: Entry) -> Entry:
    """An entry without what could not be moved, and with what guests of this platform have."""
    edits = _EDITS.get((entry.function, entry.index), {})
    changed = {name: getattr(entry, name) & kept & _ALL | added for name, (kept, added) in edits.items()}
    return keep(entry, **changed)


def _for_vcpu(entry: Entry, vcpu: int, vcpus: int) -> Entry:
    """The same entry, as another vCPU sees it: every vCPU is a core of one package."""
    match entry.function:
        case 0x1:
            multiple = 1 << 28 if vcpus > 1 else 0
            edx = entry.edx & ~(1 << 28) | multiple
            return keep(entry, ebx=entry.ebx & 0xFF00 | vcpus << 16 | vcpu << 24, edx=edx)
        case 0x8000_0001 if vcpus > 1:
            return keep(entry, ecx=entry.ecx | 1 << 1)  # CmpLegacy: vCPUs are cores
        case 0x8000_0008:
            return keep(entry, ecx=vcpus - 1)
        case _:
            return entry
