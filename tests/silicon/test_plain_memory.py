"""Memory of a guest that is not confidential: one plane for both sides, and no page has a state."""

from __future__ import annotations

import pytest

from sealift.address import PAGE_SIZE
from sealift.errors import UserError
from sealift.pageset import PageSet
from sealift.silicon.engines.choice import Chosen
from sealift.silicon.engines.cpuid import leaves
from sealift.silicon.engines.interface import MAP_GPA_RANGE, Hypercall, VmShape
from sealift.silicon.engines.kvm.engine import KvmFactory
from sealift.silicon.engines.unicorn.engine import UnicornFactory
from sealift.silicon.engines.unicorn.walker import Access, PageFault
from sealift.silicon.memory.plain_memory import PlainMemory
from sealift.silicon.process.hypercalls import carry_out

from .board import LAYOUT


@pytest.fixture
def memory() -> PlainMemory:
    return PlainMemory(LAYOUT)


def test_what_the_guest_writes_is_what_the_host_reads_and_dirty_on_its_plane(memory: PlainMemory) -> None:
    engine = UnicornFactory().make(memory, VmShape(1, plain=True))
    memory.private.words[3, 0] = 0x1234
    engine.encrypted_log.mark(3)
    engine.plain_log.mark(5)
    assert int(memory.shared.words[3, 0]) == 0x1234
    memory.start_meter()
    engine.plain_log.mark(5)
    assert memory.read_meter() == (0, 1)
    assert list(memory.take_shared_dirty().numbers()) == [3, 5]
    assert len(memory.take_unsent()) == memory.count_private() == 0
    assert memory.shared_pages() == PageSet.full(LAYOUT.pages)


def test_declaring_a_page_shared_succeeds_and_changes_nothing(memory: PlainMemory) -> None:
    memory.private.words[0] = 7
    assert carry_out(memory, Hypercall(MAP_GPA_RANGE, (LAYOUT.blocks[0].gpa, 1, 0, 0))) == (0, None)
    memory.convert(0, 1, to_shared=True)
    memory.convert(0, 1, to_shared=False)
    assert (memory.shared.words[0] == 7).all()


def test_cpuid_has_no_memory_encryption_and_a_c_bit_is_an_address_bit_without_ram(memory: PlainMemory) -> None:
    seen = leaves(vcpu=0, vcpus=1, cbit=47, plain=True)
    assert seen[0x8000_001F] == (0, 0, 0, 0)
    assert seen[0x4000_0001] == (0, 0, 0, 0)
    engine = UnicornFactory().make(memory, VmShape(1, plain=True))
    table = LAYOUT.blocks[0].gpa
    memory.private.words[0, 0] = table | 1 << 47 | 0b11
    with pytest.raises(PageFault, match="outside RAM"):
        engine.walker.translate(table, PAGE_SIZE, Access.READ)


def test_the_engine_kvm_is_taken_for_no_plain_guest() -> None:
    kvm = KvmFactory.__new__(KvmFactory)  # without a KVM
    chosen = Chosen(kvm, "KVM passed its self-test").for_guest(es=False, plain=True)
    assert chosen.factory.name == "unicorn"
    assert "plain" in chosen.reason
    asked_for = Chosen(kvm, "it was asked for", asked_for=True)
    assert asked_for.for_guest(es=False, plain=True) is asked_for
    with pytest.raises(UserError, match="confidential guests alone"):
        kvm.make(PlainMemory(LAYOUT), VmShape(1, plain=True))
