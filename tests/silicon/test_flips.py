"""What a change of page state does to content: each rule of the design under its own name."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import GuestMemory

from .dram import decrypted, encrypted
from .windows import KEY, LAYOUT, ScriptedGuest, content, filled

PAGE = 12
"""In the second block: RAM page and guest physical address differ."""

SECRET = filled("the guest's secret")
NOTICE = filled("for everyone")
ZEROS = bytes(PAGE_SIZE)


def share(memory: GuestMemory, page: int = PAGE) -> None:
    memory.convert(page, 1, to_shared=True)


def hide(memory: GuestMemory, page: int = PAGE) -> None:
    memory.convert(page, 1, to_shared=False)


# --- private to shared --------------------------------------------------------------------------------------------


def test_private_to_shared_leaves_ciphertext(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)
    assert guest.read(PAGE, cbit=False) == encrypted(PAGE, SECRET)


def test_content_written_only_without_the_c_bit_since_launch_is_kept(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """Linux writes .bss..decrypted through C=0 before the hypercall declares it shared."""
    guest.write(PAGE, NOTICE, cbit=False)
    share(memory)
    assert guest.read(PAGE, cbit=False) == NOTICE


def test_one_byte_written_through_the_c_bit_is_enough_for_ciphertext(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(PAGE, NOTICE, cbit=False)
    guest.write(PAGE, b"!", cbit=True, at=4095)
    guest.write(PAGE, b"?", cbit=False, at=0)
    plain = guest.read(PAGE, cbit=True)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, plain)


def test_a_page_of_zeros_that_was_written_anew_without_the_c_bit_is_kept(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    """Linux cleared its per-CPU data with C-bit long ago, and copies it in place before it declares it shared."""
    guest.write(PAGE, ZEROS, cbit=True)
    memory.take_unsent()
    guest.write(PAGE, ZEROS, cbit=False)
    share(memory)
    assert content(memory.shared, PAGE) == ZEROS


def test_a_page_of_zeros_that_was_written_with_the_c_bit_alone_is_ciphertext(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, ZEROS, cbit=True)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, ZEROS)


def test_writes_without_the_c_bit_before_a_flip_do_not_count_after_it(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, ZEROS, cbit=False)
    share(memory)
    hide(memory)
    guest.write(PAGE, ZEROS, cbit=True)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, ZEROS)


def test_a_write_through_the_c_bit_counts_even_when_its_log_was_read_long_ago(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    memory.take_unsent()
    memory.take_shared_dirty()
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)


@pytest.mark.parametrize("how", ["launch update", "launch secret", "host ciphertext write"])
def test_content_that_firmware_or_host_put_there_becomes_ciphertext(
    guest: ScriptedGuest, memory: GuestMemory, how: str
) -> None:
    gpa = LAYOUT.gpa(PAGE * PAGE_SIZE)
    memory.shared.window(PAGE, 1)[:] = SECRET
    match how:
        case "launch update":
            list(memory.move_to_private(gpa, PAGE_SIZE))
        case "launch secret":
            memory.write_private(gpa, SECRET)
        case _:
            memory.write_host_view(PAGE, 1)
    plain = guest.read(PAGE, cbit=True)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, plain)
    assert plain == (decrypted(PAGE, SECRET) if how == "host ciphertext write" else SECRET)


# --- shared to private --------------------------------------------------------------------------------------------


def test_shared_to_private_leaves_the_decryption_of_the_shared_content(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    share(memory)
    guest.write(PAGE, NOTICE, cbit=False)
    hide(memory)
    assert guest.read(PAGE, cbit=True) == decrypted(PAGE, NOTICE)


def test_what_the_host_wrote_to_a_shared_page_is_garbage_once_it_is_private(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    memory.shared.window(PAGE, 1)[:] = NOTICE
    hide(memory)
    assert guest.read(PAGE, cbit=True) == decrypted(PAGE, NOTICE)


def test_a_hole_the_host_punched_into_a_shared_page_is_content_like_any_other(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    punched = PageSet(LAYOUT.pages)
    punched.mark(PAGE)
    memory.shared.punch(punched)
    hide(memory)
    assert guest.read(PAGE, cbit=True) == decrypted(PAGE, ZEROS)


def test_the_host_view_command_on_a_shared_page_does_not_bring_old_plaintext_back(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    memory.shared.window(PAGE, 1)[:] = NOTICE
    memory.write_host_view(PAGE, 1)
    hide(memory)
    assert guest.read(PAGE, cbit=True) == decrypted(PAGE, NOTICE)


def test_content_written_through_the_c_bit_between_pte_change_and_hypercall_is_kept(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    share(memory)
    guest.write(PAGE, NOTICE, cbit=False)
    guest.write(PAGE, SECRET, cbit=True)
    hide(memory)
    assert guest.read(PAGE, cbit=True) == SECRET


# --- there and back -------------------------------------------------------------------------------------------------


def test_private_shared_private_without_writes_gives_the_content_back(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    hide(memory)
    assert guest.read(PAGE, cbit=True) == SECRET


@pytest.mark.attack("page states", "looks at a page through any number of flips", gains="nothing")
def test_no_number_of_flips_shows_plaintext_to_the_host(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    for _ in range(3):
        share(memory)
        assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)
        hide(memory)
        assert guest.read(PAGE, cbit=True) == SECRET


def test_reading_through_the_other_window_between_flips_changes_nothing(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    share(memory)
    guest.read(PAGE, cbit=True)
    hide(memory)
    guest.read(PAGE, cbit=False)
    share(memory)
    assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)


def test_an_untouched_page_stays_a_hole_through_flips(guest: ScriptedGuest, memory: GuestMemory) -> None:
    share(memory)
    hide(memory)
    assert not memory.private.populated()
    assert not memory.take_unsent()
    assert guest.read(PAGE, cbit=True) == ZEROS


# --- sets and windows ------------------------------------------------------------------------------------------------


def test_a_flip_marks_both_planes_dirty(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(PAGE, SECRET, cbit=True)
    for flip in (share, hide):
        memory.take_unsent()
        memory.take_shared_dirty()
        flip(memory)
        assert memory.take_unsent().numbers().tolist() == [PAGE]
        assert memory.take_shared_dirty().numbers().tolist() == [PAGE]


def test_a_page_in_that_state_already_stays_as_it_is(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """Pages 2 to 5 are declared shared, of which 3 and 4 are already."""
    for page in range(2, 6):
        guest.write(page, SECRET, cbit=True)
    memory.convert(3, 2, to_shared=True)
    guest.write(3, NOTICE, cbit=False)
    guest.write(4, NOTICE, cbit=True)
    memory.take_shared_dirty()
    memory.convert(2, 4, to_shared=True)
    assert content(memory.shared, 3) == NOTICE
    assert guest.read(4, cbit=True) == NOTICE
    assert content(memory.shared, 5) == encrypted(5, SECRET)
    assert memory.take_shared_dirty().numbers().tolist() == [2, 5]
    assert guest.remapped[-1].numbers().tolist() == [2, 5]
    assert memory.states.numbers().tolist() == [2, 3, 4, 5]


def test_a_flip_changes_its_pages_alone(guest: ScriptedGuest, memory: GuestMemory) -> None:
    for page in range(LAYOUT.pages):
        guest.write(page, filled(f"page {page}"), cbit=True)
    before = bytes(memory.shared.data)
    memory.convert(9, 2, to_shared=True)  # the last page of one block, the first of the next
    for page in range(LAYOUT.pages):
        flipped = page in (9, 10)
        expected = encrypted(page, filled(f"page {page}")) if flipped else before[page * 4096 : (page + 1) * 4096]
        assert content(memory.shared, page) == expected
        assert guest.read(page, cbit=True) == filled(f"page {page}")


def test_a_flip_of_more_pages_than_one_pass_converts() -> None:
    """Nothing is lost at the seams of passes; and the flip back restores all."""
    layout = RamLayout((RamBlock("ram", Gpa(0), 2500 * PAGE_SIZE),))
    memory = GuestMemory(layout, KEY)
    guest = ScriptedGuest(memory)
    pattern = os.urandom(layout.size)
    memory.private.data[:] = pattern
    for page in range(layout.pages):
        guest.write(page, b"", cbit=True)
    memory.convert(0, layout.pages, to_shared=True)
    assert bytes(memory.shared.data) == b"".join(
        encrypted(page, pattern[page * PAGE_SIZE : (page + 1) * PAGE_SIZE], layout) for page in range(layout.pages)
    )
    memory.private.data[:] = bytes(layout.size)
    memory.convert(0, layout.pages, to_shared=False)
    assert bytes(memory.private.data) == pattern


class OneDram(RuleBasedStateMachine):
    """A guest that uses each page through the right window cannot tell two planes from DRAM.

    In DRAM there is one content; a private access goes through the cipher, a shared one does not, and a change of
    page state moves nothing at all.
    """

    pages = st.sampled_from((0, 9, 10, 15))
    offsets = st.sampled_from((0, 16, 4080))
    data = st.binary(min_size=1, max_size=16)

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory(LAYOUT, KEY)
        self.guest = ScriptedGuest(self.memory)
        self.dram: dict[int, bytes] = {}
        self.shared: set[int] = set()
        for page in (0, 9, 10, 15):
            self.guest.write(page, filled(f"page {page}"), cbit=True)
            self.dram[page] = encrypted(page, filled(f"page {page}"))

    @rule(page=pages, at=offsets, data=data)
    def guest_writes(self, page: int, at: int, data: bytes) -> None:
        """Through the window that the page's state asks for."""
        before = self.dram[page] if page in self.shared else decrypted(page, self.dram[page])
        after = before[:at] + data + before[at + len(data) :]
        self.guest.write(page, data, cbit=page not in self.shared, at=at)
        self.dram[page] = after if page in self.shared else encrypted(page, after)

    @rule(page=pages, data=st.binary(min_size=16, max_size=16))
    def host_writes_dram(self, page: int, data: bytes) -> None:
        """Some bytes of DRAM, in the middle of what it saw there."""
        self.memory.read_host_view(page, 1)
        self.memory.shared.window(page, 1)[32:48] = data
        self.memory.write_host_view(page, 1)
        self.dram[page] = self.dram[page][:32] + data + self.dram[page][48:]

    @rule(page=pages)
    def flips(self, page: int) -> None:
        """The guest declares the other state."""
        self.memory.convert(page, 1, to_shared=page not in self.shared)
        self.shared ^= {page}

    @rule()
    def logs_are_read(self) -> None:
        """A migration's VMM and handler look."""
        self.memory.take_unsent()
        self.memory.take_shared_dirty()

    @invariant()
    def guest_and_host_see_dram(self) -> None:
        """After every step, all of it."""
        self.memory.read_host_view(0, LAYOUT.pages)
        for page, held in self.dram.items():
            assert content(self.memory.shared, page) == held
            seen = self.guest.read(page, cbit=page not in self.shared)
            assert seen == (held if page in self.shared else decrypted(page, held))


TestOneDram = OneDram.TestCase
TestOneDram.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
