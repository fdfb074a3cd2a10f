"""The start-up code of an SEV-ES guest: kernels run on it as they are, and it takes no half answer."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.sev.policy import Policy

from .es_machine import BITMAP, INFO_1, EsMachine, answer
from .machine import Machine

RAM = RamLayout((RamBlock("pc.ram", Gpa(0), 16 << 20),))


def recipe(kernel: str, vcpus: int = 2, command_line: str = "") -> GuestRecipe:
    made = GuestRecipe(startup_blob(), RAM, vcpus, bytes(32), program(kernel), command_line=command_line)
    return made.under(Policy.ES)


def test_idle_says_so_once_and_halts_all_vcpus() -> None:
    guest = EsMachine(recipe("idle"))
    guest.run_to_the_end()
    assert guest.console == "idle ready\n"


def test_ghcbs_and_mailbox_are_shared_and_everything_else_is_private() -> None:
    guest = EsMachine(recipe("idle"))
    guest.run_to_the_end()
    table = guest.recipe.table()
    open_pages = {area.gpa + at for area in (table.mailbox, table.ghcbs) for at in range(0, area.size, 4096)}
    assert guest.shared == open_pages
    cr3 = guest.vcpus[1].reg("CR3")
    for gpa in range(0, RAM.size, 4096):
        assert guest.translate(cr3, gpa) == (gpa, gpa not in open_pages)


def test_each_vcpu_has_a_ghcb_of_its_own() -> None:
    guest = EsMachine(recipe("idle", vcpus=3))
    guest.run_to_the_end()
    assert [vcpu.msr for vcpu in guest.vcpus] == [0x90_0000, 0x90_1000, 0x90_2000]  # type: ignore[attr-defined]


def test_a_kernel_computes_the_same_with_and_without_es() -> None:
    lines = 4

    def enough(console: str) -> bool:
        return console.count("ledger 0") >= lines

    with_es = EsMachine(recipe("ledger", 1, "ws=4 flip=1 every=2"))
    without = Machine(with_es.recipe.under(Policy(0)))
    with_es.run(enough)
    without.run(enough)
    assert "FAULT" not in with_es.console
    assert with_es.console.splitlines()[:lines] == without.console.splitlines()[:lines]


def test_a_receiver_says_that_it_is_ready() -> None:
    guest = EsMachine(recipe("ledger").receiver())
    guest.run_to_the_end()
    assert guest.ready == 1
    assert guest.console == ""


def test_a_platform_that_shares_nothing_ends_the_guest() -> None:
    guest = EsMachine(recipe("idle"), refuses=True)
    guest.run(lambda _: False)
    assert "asked for the guest's end" in guest.crash


def no_bits(page: bytearray) -> None:
    page[BITMAP : BITMAP + 16] = bytes(16)


def no_data(page: bytearray) -> None:
    page[BITMAP + 7] &= 0x7F  # rax


def malformed(page: bytearray) -> None:
    answer(page, INFO_1, 2)


def exception(page: bytearray) -> None:
    answer(page, INFO_1, 1)


@pytest.mark.parametrize("spoil", [no_bits, no_data, malformed, exception], ids=lambda spoil: spoil.__name__)
def test_an_answer_that_is_none_ends_the_guest(spoil: Callable[[bytearray], None]) -> None:
    guest = EsMachine(recipe("idle"), spoil=spoil)
    guest.run(lambda _: False)
    assert "asked for the guest's end" in guest.crash
    assert len(guest.console) <= 1


def test_rubbish_in_all_that_an_answer_need_not_bring_changes_nothing() -> None:
    def scribble(page: bytearray) -> None:
        kept = {offset: page[offset : offset + 8] for offset in (0x1F8, INFO_1, 0x3A0, BITMAP, BITMAP + 8)}
        page[:] = b"\xff" * len(page)
        for offset, data in kept.items():
            page[offset : offset + 8] = data
        struct.pack_into("<I", page, INFO_1 + 4, 0xFFFF_FFFF)  # its upper half means nothing

    guest = EsMachine(recipe("idle"), spoil=scribble)
    guest.run_to_the_end()
    assert guest.console == "idle ready\n"


def test_what_a_vmm_must_not_decide_is_never_asked_by_page() -> None:
    """Page states and CPUID, which names the C-bit."""
    guest = EsMachine(recipe("ledger", 1, "ws=2 flip=1 every=2"))
    guest.run(lambda console: console.count("ledger 0") >= 2)
    assert guest.conversions > 4
    assert set(guest.page_exits) == {0x7B}
