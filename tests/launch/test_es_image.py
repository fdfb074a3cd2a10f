"""A guest with SEV-ES: its vCPUs' registers are measured behind its image, and its start-up code knows what it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import UserError
from sealift.launch.areas import GHCBS, Area
from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe
from sealift.launch.machine import MachineType
from sealift.launch.startup import StartupTable
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.vmsa import EFER_SVME, Vmsa

from .bzimages import bzimage
from .test_image import RECIPE

ES = DEFAULT_POLICY | Policy.ES
WITH_ES = RECIPE.under(ES)


def test_the_policy_alone_decides() -> None:
    assert replace(RECIPE, es=True) == WITH_ES
    assert WITH_ES.under(DEFAULT_POLICY) == RECIPE
    assert WITH_ES.receiver().es


@pytest.mark.parametrize("recipe", [WITH_ES, WITH_ES.receiver()], ids=["guest", "receiver"])
def test_the_digest_goes_on_with_the_vmsa_of_every_vcpu(recipe: GuestRecipe) -> None:
    """Also in a receiver: nobody could start a vCPU of it later."""
    vmsas = tuple(recipe.vmsas())
    assert len(vmsas) == recipe.vcpus
    data = b"".join(piece.data for piece in recipe.pieces()) + b"".join(vmsas)
    assert recipe.launch_digest() == hashlib.sha256(data).digest()


def test_a_guest_without_es_has_no_vmsa_and_no_ghcb() -> None:
    assert list(RECIPE.vmsas()) == []
    assert RECIPE.table().ghcbs == Area(Gpa(0), 0)


def test_a_vmsa_is_the_entry_state_and_else_a_reset() -> None:
    entry = WITH_ES.entry(1)
    assert entry is not None
    page = Vmsa.from_buffer_copy(entry.vmsa())
    assert (page.rip, page.cr3, page.cr0, page.rsp) == (entry.rip, entry.cr3, entry.cr0, 0)
    assert (page.efer, page.cr4) == (entry.efer | EFER_SVME, entry.cr4 | 0x40)
    assert (page.cs.selector, page.cs.attributes, page.cs.base) == (0x10, 0xA9B, 0)
    assert page.gdtr.base == page.idtr.base == 0
    assert (page.mxcsr, page.x87_fcw, page.rflags) == (0x1F80, 0x37F, 2)
    assert EntryState(rip=1, cr3=2, rsp=3, rdi=4, rsi=5).vmsa() != EntryState(rip=1, cr3=2).vmsa()


@pytest.mark.parametrize("recipe", [WITH_ES, WITH_ES.receiver()], ids=["guest", "receiver"])
def test_the_start_up_table_names_a_ghcb_for_each_vcpu(recipe: GuestRecipe) -> None:
    table = recipe.table()
    assert table.ghcbs == Area(GHCBS, recipe.vcpus * PAGE_SIZE)
    assert StartupTable.decode(table.encode()) == table
    assert not any(table.ghcbs.overlaps(Area(piece.gpa, len(piece.data))) for piece in recipe.pieces())
    assert table.mailbox.gpa >> 21 == GHCBS >> 21, "in the region that has a page table already"


def test_the_most_vcpus_have_room_for_their_ghcbs() -> None:
    layout = RamLayout((RamBlock("ram", Gpa(0), 32 << 20),))
    table = replace(WITH_ES, vcpus=255, layout=layout).table()
    assert table.ghcbs.end <= 0xA0_0000


def test_memory_that_ends_before_the_ghcbs_is_too_small() -> None:
    layout = RamLayout((RamBlock("ram", Gpa(0), 9 << 20),))
    with pytest.raises(UserError, match="too small: the start-up GHCBs"):
        replace(RECIPE.receiver(), layout=layout).under(ES)


def test_linux_is_refused_with_the_reason() -> None:
    layout = RamLayout((RamBlock("ram", Gpa(0), 32 << 20),))
    linux = replace(RECIPE, layout=layout, kernel=bzimage(), payload=b"", machine=MachineType.MICROVM)
    with pytest.raises(UserError, match="host would see the registers of an SEV-ES guest"):
        linux.under(ES)
