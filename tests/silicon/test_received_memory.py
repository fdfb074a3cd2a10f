"""Memory that a secure processor receives: page states come from the host, and no flip may pay for its lies."""

from __future__ import annotations

import numpy as np
import pytest

from sealift.pageset import PageSet
from sealift.silicon.memory.guest_memory import GuestMemory

from .dram import encrypted
from .windows import LAYOUT, ScriptedGuest, content, filled

PAGE, OTHER = 3, 5
SECRET = filled("the guest's secret")
NOTICE = filled("for everyone")


def shared(*pages: int) -> PageSet:
    return PageSet.of(LAYOUT.pages, np.array(pages, np.uint64))


def receive(memory: GuestMemory, page: int, data: bytes) -> None:
    memory.write_private(LAYOUT.gpa(page << 12), data)


def test_what_was_received_is_hidden_by_a_flip(guest: ScriptedGuest, memory: GuestMemory) -> None:
    receive(memory, PAGE, SECRET)
    memory.load_shared(shared())
    memory.settle_received()
    assert guest.read(PAGE, cbit=True) == SECRET
    memory.convert(PAGE, 1, to_shared=True)
    assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)


@pytest.mark.attack("page states", "declares received pages shared, and private again (method psp)", gains="nothing")
def test_a_host_that_calls_a_page_shared_and_takes_it_back_sees_no_plaintext(memory: GuestMemory) -> None:
    receive(memory, PAGE, SECRET)
    memory.load_shared(shared(PAGE))
    memory.load_shared(shared())
    memory.settle_received()
    memory.convert(PAGE, 1, to_shared=True)
    assert content(memory.shared, PAGE) == encrypted(PAGE, SECRET)


def test_a_page_that_is_shared_in_the_end_keeps_nothing_that_was_received_for_it(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    """It was sent while it was private, and flipped since."""
    receive(memory, PAGE, SECRET)
    memory.shared.window(PAGE, 1)[:] = NOTICE
    memory.load_shared(shared(PAGE))
    memory.settle_received()
    assert guest.read(PAGE, cbit=False) == NOTICE
    assert guest.read(PAGE, cbit=True) == bytes(4096)
    memory.convert(PAGE, 1, to_shared=False)
    assert guest.read(PAGE, cbit=True) not in (SECRET, NOTICE)


def test_pages_that_were_touched_in_advance_are_holes_unless_they_were_received(memory: GuestMemory) -> None:
    memory.private.touch()
    receive(memory, PAGE, SECRET)
    memory.load_shared(shared(OTHER))
    memory.settle_received()
    assert memory.private.populated().numbers().tolist() == [PAGE]


def test_everything_that_is_no_hole_is_unsent_when_sending_begins(memory: GuestMemory) -> None:
    receive(memory, PAGE, SECRET)
    memory.take_unsent()
    memory.mark_all_unsent()
    assert memory.take_unsent().numbers().tolist() == [PAGE]
