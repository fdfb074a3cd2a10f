"""Which pages count as written, on which plane; a page that the sets forget is lost in a migration."""

from __future__ import annotations

import pytest

from sealift.address import PAGE_SIZE
from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import GuestMemory, PageStates

from .windows import LAYOUT, ScriptedGuest


def unsent(memory: GuestMemory) -> list[int]:
    return [int(page) for page in memory.take_unsent().numbers()]


def shared_dirty(memory: GuestMemory) -> list[int]:
    return [int(page) for page in memory.take_shared_dirty().numbers()]


@pytest.mark.parametrize("shared", [False, True])
def test_a_page_written_on_its_private_plane_is_unsent_whatever_its_state(
    guest: ScriptedGuest, memory: GuestMemory, *, shared: bool
) -> None:
    """Linux changes the PTE before it makes the hypercall."""
    if shared:
        memory.convert(3, 1, to_shared=True)
        shared_dirty(memory)
    guest.write(3, b"x", cbit=True)
    assert unsent(memory) == [3]
    assert shared_dirty(memory) == []


def test_without_the_c_bit_the_state_decides_the_plane(guest: ScriptedGuest, memory: GuestMemory) -> None:
    memory.convert(4, 1, to_shared=True)
    shared_dirty(memory)
    guest.write(3, b"x", cbit=False)
    guest.write(4, b"x", cbit=False)
    assert unsent(memory) == [3]
    assert shared_dirty(memory) == [4]


def test_a_write_is_counted_for_the_plane_it_reached_though_the_state_changed_since(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    """Logs are read before the planes are converted."""
    guest.write(5, b"x", cbit=False)
    memory.convert(5, 1, to_shared=True)
    assert unsent(memory) == [5]


def test_each_set_is_taken_alone(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """The VMM reading its log takes nothing from the handler's set, and the other way round."""
    memory.convert(4, 1, to_shared=True)
    shared_dirty(memory)
    guest.write(2, b"x", cbit=True)
    guest.write(4, b"x", cbit=False)
    assert shared_dirty(memory) == [4]
    assert memory.count_unsent() == 1
    assert unsent(memory) == [2]
    assert unsent(memory) == shared_dirty(memory) == []


def test_counting_takes_nothing(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(2, b"x", cbit=True)
    assert memory.count_unsent() == memory.count_unsent() == 1
    assert unsent(memory) == [2]


def test_pages_put_back_still_have_to_be_sent(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(2, b"x", cbit=True)
    taken = memory.take_unsent()
    guest.write(7, b"x", cbit=True)
    memory.put_back(taken)
    assert unsent(memory) == [2, 7]


def test_writes_that_no_engine_sees_mark_the_sets_themselves(guest: ScriptedGuest, memory: GuestMemory) -> None:
    del guest
    memory.write_private(2 * PAGE_SIZE - 1, b"ab")
    assert unsent(memory) == [1, 2]
    list(memory.move_to_private(3 * PAGE_SIZE, 16))
    assert unsent(memory) == [3]
    memory.write_host_view(5, 2)
    assert unsent(memory) == [5, 6]
    assert shared_dirty(memory) == []


def test_a_host_write_counts_for_the_plane_that_the_guest_will_read(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """Of three pages the host writes, the middle one is shared."""
    del guest
    memory.convert(5, 1, to_shared=True)
    shared_dirty(memory)
    memory.write_host_view(4, 3)
    assert unsent(memory) == [4, 6]
    assert shared_dirty(memory) == [5]


def test_looking_at_ciphertext_marks_nothing(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(2, b"x", cbit=True)
    unsent(memory)
    memory.read_host_view(0, LAYOUT.pages)
    assert unsent(memory) == shared_dirty(memory) == []


def test_loaded_page_states_convert_nothing(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """A target's planes came from the source as they were."""
    guest.write(2, b"private", cbit=True)
    memory.shared.window(3, 1)[:4] = b"open"
    states, sealed, opened = (PageSet(LAYOUT.pages) for _ in range(3))
    states.mark(3)
    sealed.mark(2)
    opened.mark(4)
    before = bytes(memory.private.data), bytes(memory.shared.data)
    memory.load_states(PageStates(states.copy(), sealed.copy(), opened.copy()))
    assert (bytes(memory.private.data), bytes(memory.shared.data)) == before
    assert memory.save_states() == PageStates(states, sealed, opened)
    assert guest.read(3, cbit=False)[:4] == b"open"
    assert guest.remapped[-1] == PageSet.full(LAYOUT.pages)


def test_what_a_receiver_wrote_does_not_count_as_its_guests(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """Its start-up code wrote through the C-bit where the guest wrote without it alone."""
    guest.write(2, b"start-up", cbit=True)
    memory.load_states(PageStates(*(PageSet(LAYOUT.pages) for _ in range(3))))
    memory.private.window(2, 1)[:4] = b"open"
    memory.convert(2, 1, to_shared=True)
    assert guest.read(2, cbit=False)[:4] == b"open"


def test_saved_states_hold_what_the_logs_still_hid(guest: ScriptedGuest, memory: GuestMemory) -> None:
    """The write through the C-bit travels: on the target too a flip must leave ciphertext."""
    guest.write(2, b"x", cbit=True)
    assert memory.save_states().sealed.numbers().tolist() == [2]
    assert unsent(memory) == [2]
