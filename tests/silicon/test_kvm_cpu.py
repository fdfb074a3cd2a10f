"""The CPU that guests see under KVM, made from what a host says of its own; no KVM is needed for that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import encode
from msgspec.structs import replace

from sealift.cpu.description import CpuDescription
from sealift.cpu.flags import FEATURE_WORDS, FeatureWord, flag_name
from sealift.errors import StreamError, UserError
from sealift.silicon.engines.kvm import abi
from sealift.silicon.engines.kvm.cpu import Cpu, Entry, brought, check_offered, host_cpu, limited, with_cbit

ALL = 0xFFFF_FFFF
EVERY = {"eax": ALL, "ebx": ALL, "ecx": ALL, "edx": ALL}
HAS_INDEX = 1
MEMORY_ENCRYPTION = 0x8000_001F
words = st.integers(0, ALL)


def entry(function: int, index: int = 0, flags: int = 0, **registers: int) -> Entry:
    """Unnamed registers are 0."""
    return Entry(function, index, flags, *(registers.get(name, 0) for name in ("eax", "ebx", "ecx", "edx")))


def host(*entries: Entry, width: int = 48, cbit: int | None = None, irqchip: bool = True) -> Cpu:
    """What guests see of a host with these entries and so many physical address bits."""
    said = (*entries, entry(0x8000_0008, eax=0x3000 | width))
    table = [abi.CpuidEntry2(*(getattr(one, name) for name in Entry.__struct_fields__)) for one in said]
    return host_cpu(table, irqchip=irqchip, cbit=cbit)


# --- the C-bit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "cbit"), [(36, 35), (40, 39), (47, 46), (48, 47), (49, 47), (52, 47)])
def test_the_c_bit_is_bit_47_or_the_highest_that_the_host_has(width: int, cbit: int) -> None:
    assert host(width=width).cbit == cbit


def test_a_host_that_does_not_say_its_width_has_36_bits() -> None:
    assert host_cpu([], irqchip=True).cbit == 35


def test_a_guest_may_have_its_c_bit_lower_than_the_host_would_choose() -> None:
    assert host(width=48, cbit=39).cbit == 39


def test_a_c_bit_beyond_the_hosts_width_is_refused_with_all_the_numbers() -> None:
    with pytest.raises(UserError) as refused:
        host(width=40, cbit=47)
    assert str(refused.value) == (
        "the guest's C-bit is bit 47 of physical addresses; this host has 40 such bits, "
        "so bit 39 is the highest it could give"
    )


@given(cbit=st.integers(32, 51), claimed=st.lists(words, min_size=4, max_size=4), size=words)
def test_what_a_vmm_says_of_memory_encryption_does_not_count(cbit: int, claimed: list[int], size: int) -> None:
    """With the C-bit among the address bits, it is no reserved bit of page-table entries."""
    said = Cpu((Entry(MEMORY_ENCRYPTION, 0, 0, *claimed), entry(0x8000_0008, eax=size), entry(0x1, eax=7)))
    cpu = with_cbit(said, cbit)
    assert cpu.find(MEMORY_ENCRYPTION) == entry(MEMORY_ENCRYPTION, eax=1 << 1, ebx=cbit | 1 << 6)
    assert [one.function for one in cpu.entries].count(MEMORY_ENCRYPTION) == 1
    assert cpu.find(0x8000_0008).eax == size & 0xFF00 | cbit + 1
    assert cpu.find(0x1) == entry(0x1, eax=7)


# --- what guests do not see ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf",
    [
        *(0x2, 0x4, 0x5, 0x6, 0xA, 0xB, 0xF, 0x10, 0x12, 0x14, 0x15, 0x16, 0x1D, 0x1E, 0x1F, 0x23),
        *(0x8000_001A, 0x8000_001B, 0x8000_001D, 0x8000_001E, 0x8000_0022, 0x8000_0026),
    ],
    ids=hex,
)
def test_leaves_about_this_host_alone_are_hidden(leaf: int) -> None:
    cpu = host(entry(leaf, flags=HAS_INDEX, **EVERY), entry(leaf, 1, HAS_INDEX, **EVERY))
    assert leaf not in {one.function for one in cpu.entries}


@pytest.mark.parametrize(
    ("leaf", "index", "register", "bits"),
    [
        pytest.param(0x1, 0, "ecx", 1 << 3, id="MONITOR"),
        pytest.param(0x1, 0, "ecx", 1 << 24, id="TSC deadline"),
        pytest.param(0x7, 0, "edx", 1 << 22 | 1 << 24 | 1 << 25, id="AMX"),
        pytest.param(0xD, 0, "eax", 1 << 17 | 1 << 18, id="AMX state"),
        pytest.param(0xD, 1, "eax", 1 << 3, id="XSAVES"),
        pytest.param(0xD, 1, "eax", 1 << 4, id="XFD"),
        pytest.param(0x4000_0001, 0, "eax", 1 << 4 | 1 << 10 | 1 << 14, id="asynchronous page faults"),
        pytest.param(0x8000_0001, 0, "ecx", 1 << 2, id="SVM"),
        pytest.param(0x8000_0007, 0, "edx", ALL, id="invariant TSC"),
        pytest.param(0x8000_000A, 0, "edx", ALL, id="nested paging"),
    ],
)
def test_features_that_could_not_be_moved_are_masked(leaf: int, index: int, register: str, bits: int) -> None:
    cpu = host(entry(leaf, index, HAS_INDEX, **EVERY))
    assert getattr(cpu.find(leaf, index), register) & bits == 0


def test_a_feature_that_can_be_moved_stays() -> None:
    cpu = host(entry(0x1, ecx=ALL, edx=ALL), entry(0x7, 0, HAS_INDEX, ebx=ALL))
    assert cpu.find(0x1).edx == ALL
    assert cpu.find(0x7).ebx == ALL


@pytest.mark.parametrize("irqchip", [False, True])
def test_x2apic_is_there_only_with_an_apic(*, irqchip: bool) -> None:
    assert bool(host(entry(0x1, ecx=1 << 21), irqchip=irqchip).find(0x1).ecx & 1 << 21) is irqchip


@pytest.mark.parametrize("component", range(2, 64))
def test_state_components_are_shown_if_they_fit_what_travels(component: int) -> None:
    """AVX, three parts of AVX-512, PKRU."""
    cpu = host(entry(0xD, component, HAS_INDEX, eax=64))
    assert bool(cpu.find(0xD, component).eax) is (component in {2, 5, 6, 7, 9})


def test_a_guest_knows_that_it_is_one_and_what_it_can_ask_for() -> None:
    cpu = host(entry(0x1), entry(0x4000_0000, eax=0x4000_0010), entry(0x4000_0001), entry(0x8000_0000, eax=0x8000_0008))
    assert cpu.find(0x1).ecx == 1 << 31
    assert cpu.find(0x4000_0000).eax == 0x4000_0001
    assert cpu.find(0x4000_0001).eax == 1 << 16 | 1 << 17
    assert cpu.find(0x8000_0000).eax == MEMORY_ENCRYPTION


# --- one table a vCPU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_every_vcpu_has_its_own_apic_id_in_one_package(vcpus: int) -> None:
    cpu = host(entry(0x1, ebx=ALL, edx=ALL), entry(0x8000_0001))
    for index in range(vcpus):
        seen = shown(cpu.table(index, vcpus))
        assert seen[0x1].ebx == index << 24 | vcpus << 16 | cpu.find(0x1).ebx & 0xFF00
        assert bool(seen[0x1].edx >> 28 & 1) is (vcpus > 1), "HTT"
        assert bool(seen[0x8000_0001].ecx >> 1 & 1) is (vcpus > 1), "CmpLegacy"
        assert seen[0x8000_0008].ecx == vcpus - 1


def test_vcpus_differ_in_nothing_else() -> None:
    cpu = host(entry(0x1, **EVERY), entry(0x7, 0, HAS_INDEX, **EVERY), entry(0x8000_0001, **EVERY))
    first, second = (shown(cpu.table(index, 2)) for index in (0, 1))
    assert replace(second[0x1], ebx=first[0x1].ebx) == first[0x1]
    assert {leaf for leaf in first if first[leaf] != second[leaf]} == {0x1}


def test_the_table_holds_all_entries_and_no_more() -> None:
    cpu = host(entry(0x7, 1, HAS_INDEX, eax=3))
    table = cpu.table(0, 1)
    assert table.nent == len(cpu.entries)
    assert (table.entries[0].index, table.entries[0].flags, table.entries[0].eax) == (1, HAS_INDEX, 3)


def shown(table: abi.Cpuid2) -> dict[int, Entry]:
    """A table's entries, by leaf."""
    entries = table.entries[: table.nent]
    return {one.function: Entry(*(getattr(one, name) for name in Entry.__struct_fields__)) for one in entries}


# --- whether another host will do -----------------------------------------------------------------------------------


def test_a_host_that_can_do_more_will_do() -> None:
    wanted, better = host(entry(0x1, edx=0xFF)), host(entry(0x1, edx=0xFFFF))
    assert wanted.missing_on(better) == []
    check_offered(wanted, better)


def test_all_that_is_missing_is_named() -> None:
    wanted = host(
        entry(0x1, ecx=1 << 28, edx=ALL),
        entry(0x7, 0, HAS_INDEX, ebx=1 << 5 | 1 << 16),
        entry(0x7, 1, HAS_INDEX, eax=1 << 4),
        entry(0x8000_0001, edx=1 << 29),
    )
    poorer = host(entry(0x1, edx=ALL), entry(0x7, 0, HAS_INDEX, ebx=1 << 5))
    assert wanted.missing_on(poorer) == ["avx", "avx512f", "avx-vnni", "lm"]
    told = (
        "this host's CPU lacks what the guest uses: avx, avx512f, avx-vnni, lm; start guests with the --cpu that "
        "`sealift cpu baseline` finds for both hosts"
    )
    with pytest.raises(UserError, match=f"^{told}$"):
        check_offered(wanted, poorer)


def test_a_feature_without_a_name_is_named_by_its_place() -> None:
    wanted = host(entry(0x8000_0021, eax=1 << 31))
    assert wanted.missing_on(host()) == ["CPUID 0x80000021.0 EAX bit 31"]


@pytest.mark.parametrize("word", FEATURE_WORDS, ids=lambda word: f"{word.leaf:#x}.{word.subleaf} {word.register}")
def test_no_register_has_more_names_than_bits_or_one_name_twice(word: FeatureWord) -> None:
    names = [name for name in word.names if name != "-"]
    assert len(word.names) <= 32
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("leaf", "subleaf", "register", "bit", "name"),
    [
        (0x1, 0, "ecx", 5, "vmx"),
        (0x1, 0, "ecx", 31, "hypervisor"),
        (0x1, 0, "edx", 31, "pbe"),
        (0x7, 0, "ebx", 31, "avx512vl"),
        (0x7, 0, "ecx", 16, "la57"),
        (0x7, 0, "ecx", 22, "rdpid"),
        (0x7, 0, "ecx", 31, "pks"),
        (0x7, 0, "edx", 11, "rtm-always-abort"),
        (0x7, 0, "edx", 24, "amx-tile"),
        (0x7, 0, "edx", 31, "ssbd"),
        (0x7, 1, "eax", 26, "lam"),
        (0xD, 0, "eax", 9, "pkru"),
        (0x4000_0001, 0, "eax", 9, "kvm-pv-tlb-flush"),
        (0x4000_0001, 0, "eax", 16, "kvm-hc-map-gpa-range"),
        (0x4000_0001, 0, "eax", 17, "kvm-migration-control"),
        (0x4000_0001, 0, "eax", 24, "kvmclock-stable-bit"),
        (0x8000_0001, 0, "ecx", 22, "topoext"),
        (0x8000_0001, 0, "ecx", 24, "perfctr-nb"),
        (0x8000_0001, 0, "edx", 29, "lm"),
        (0x8000_0008, 0, "ebx", 12, "ibpb"),
        (0x8000_0008, 0, "ebx", 28, "amd-psfd"),
        (0x8000_0021, 0, "eax", 8, "auto-ibrs"),
    ],
)
def test_names_stand_at_their_bits(leaf: int, subleaf: int, register: str, bit: int, name: str) -> None:
    """The last of each register, and one behind each gap: had one been forgotten, these would be off."""
    (word,) = (word for word in FEATURE_WORDS if (word.leaf, word.subleaf, word.register) == (leaf, subleaf, register))
    assert flag_name(word, bit) == name


# --- as it travels --------------------------------------------------------------------------------------------------


@given(table=st.lists(st.lists(words, min_size=7, max_size=7), max_size=20))
def test_a_description_arrives_as_it_was_sent(table: list[list[int]]) -> None:
    cpu = Cpu(tuple(Entry(*values) for values in table))
    assert Cpu.decode(cpu.encode()) == cpu


@given(data=st.binary(max_size=200).filter(lambda data: data[:1] not in {b"\x90"}))
def test_rubbish_is_no_description(data: bytes) -> None:
    with pytest.raises(StreamError):
        Cpu.decode(data)


def _entries(count: int) -> bytes:
    return encode([[0] * 7] * count)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: encode([[0] * 6]), id="a register is missing"),
        pytest.param(lambda: encode([[0] * 8]), id="a register too many"),
        pytest.param(lambda: encode([[1 << 32, 0, 0, 0, 0, 0, 0]]), id="33 bits"),
        pytest.param(lambda: encode([[-1, 0, 0, 0, 0, 0, 0]]), id="negative"),
        pytest.param(lambda: encode([["1", 0, 0, 0, 0, 0, 0]]), id="text"),
        pytest.param(lambda: encode({"entries": []}), id="another shape"),
        pytest.param(lambda: _entries(1) + b"\0", id="more behind it"),
        pytest.param(lambda: _entries(1)[:-1], id="cut"),
        pytest.param(lambda: _entries(abi.CPUID_ROOM + 1), id="more than KVM takes"),
    ],
)
def test_a_description_that_is_nearly_one_is_refused(make: Callable[[], bytes]) -> None:
    with pytest.raises(StreamError, match="the description of the guest's CPU"):
        Cpu.decode(make())


def test_as_many_entries_as_kvm_takes_are_a_description() -> None:
    assert len(Cpu.decode(_entries(abi.CPUID_ROOM)).entries) == abi.CPUID_ROOM


# --- a CPU that a VMM describes -------------------------------------------------------------------------------------

SAYS_SO = (0x0, 0x1, 0x4000_0000, 0x4000_0001, 0x8000_0000, 0x8000_0001)
"""Leaves by which a guest finds that it is one, and encrypted; its address sizes beside."""


def plain_host() -> Cpu:
    """A host with those, and one leaf that has several."""
    return host(*(entry(function) for function in SAYS_SO), entry(0x7, flags=HAS_INDEX))


def test_the_cpu_of_a_host_like_this_one_can_be_brought() -> None:
    assert brought(plain_host(), plain_host()) == plain_host()


@pytest.mark.attack(
    "requests", "describes a CPU whose entries for what the platform decides never match", gains="nothing"
)
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        *(
            (leaf, shape)
            for leaf in (*SAYS_SO, 0x8000_0008)
            for shape in ({"index": 7, "flags": HAS_INDEX}, {"flags": 4})
        ),
        *((leaf, {"index": 7, "flags": 0}) for leaf in (*SAYS_SO, 0x7, 0x8000_0008)),
    ],
    ids=str,
)
def test_no_entry_hides_what_is_decided_here(function: int, shape: dict[str, int]) -> None:
    """KVM would give a guest such an entry instead: without extended leaves Linux takes its memory for unencrypted."""
    known = plain_host().entries
    changed = tuple(replace(one, **shape) if one.function == function else one for one in known)
    with pytest.raises(StreamError, match=f"leaf {function:#x} of the guest's CPU has an index or flags"):
        brought(Cpu(changed), plain_host())


def test_no_leaf_is_there_twice() -> None:
    known = plain_host().entries
    with pytest.raises(StreamError, match="leaf 0x1 of the guest's CPU is there twice"):
        brought(Cpu((entry(0x1, eax=1), *known)), plain_host())


# --- a CPU that a user chose ---------------------------------------------------------------------------------------


def chosen(*features: str) -> Cpu:
    """Of a host that has everything, with state components as Intel lays them out."""
    areas = {2: (256, 576), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664), 9: (8, 2688)}
    whole = host(
        entry(0x1, eax=0x806F8, ecx=ALL, edx=ALL),
        entry(0x7, 0, HAS_INDEX, ebx=ALL, ecx=ALL),
        entry(0xD, 0, HAS_INDEX, eax=ALL, ebx=576, ecx=2696),
        entry(0xD, 1, HAS_INDEX, eax=ALL),
        *(entry(0xD, index, HAS_INDEX, eax=size, ebx=place) for index, (size, place) in areas.items()),
        *(entry(leaf, **EVERY) for leaf in (0x4000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004)),
    )
    return limited(whole, CpuDescription("a name", frozenset(features)))


def test_features_without_a_name_are_not_given() -> None:
    cpu = chosen("sse2", "avx2")
    assert cpu.find(0x1).edx == 1 << 26
    assert (cpu.find(0x7).ebx, cpu.find(0x7).ecx) == (1 << 5, 0)
    assert cpu.find(0x1).ecx == 1 << 31, "that there is a hypervisor, it says itself"
    assert cpu.find(0x1).eax == 0x806F8, "a CPU without a signature has the host's"


@pytest.mark.parametrize(
    ("features", "components", "size"),
    [
        (("xsave",), 0b11, 576),
        (("xsave", "avx"), 0b111, 832),
        (("xsave", "avx", "avx512f"), 0b1110_0111, 2688),
        (("xsave", "pku"), 0b10_0000_0011, 2696),
    ],
)
def test_state_components_are_those_of_the_features(features: tuple[str, ...], components: int, size: int) -> None:
    cpu = chosen(*features)
    assert (cpu.find(0xD).eax, cpu.find(0xD).ecx) == (components, size)
    told = {one.index for one in cpu.entries if one.function == 0xD}
    assert told == {0, 1} | {index for index in range(2, 32) if components >> index & 1}


def test_without_xsave_there_is_no_leaf_about_its_state() -> None:
    assert 0xD not in {one.function for one in chosen("sse2").entries}


def test_the_name_is_the_chosen_cpus() -> None:
    cpu = chosen()
    words_ = [getattr(cpu.find(leaf), name) for leaf in range(0x8000_0002, 0x8000_0005) for name in EVERY]
    assert b"".join(word.to_bytes(4, "little") for word in words_) == b"a name".ljust(48, b"\0")
