"""What the host sees of private pages, what its writes do, and the launch: measured is what was loaded."""

from __future__ import annotations

import hashlib
import os
import threading

import numpy as np
import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import FirmwareError
from sealift.sev.status import Status
from sealift.silicon.memory.guest_memory import GuestMemory

from .dram import decrypted, encrypted
from .windows import KEY, LAYOUT, ScriptedGuest, content, filled

SECRET = filled("the guest's secret")
NOTICE = filled("for everyone")


def test_the_host_sees_ciphertext_of_private_pages_and_shared_pages_as_they_are(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    guest.write(1, SECRET, cbit=True)
    memory.convert(2, 1, to_shared=True)
    guest.write(2, NOTICE, cbit=False)
    guest.write(12, SECRET, cbit=True)
    memory.read_host_view(0, LAYOUT.pages)
    assert content(memory.shared, 1) == encrypted(1, SECRET)
    assert content(memory.shared, 2) == NOTICE
    assert content(memory.shared, 12) == encrypted(12, SECRET)


def test_ciphertext_is_produced_for_the_pages_asked_for_alone(guest: ScriptedGuest, memory: GuestMemory) -> None:
    for page in (1, 2, 3):
        guest.write(page, SECRET, cbit=True)
    memory.read_host_view(2, 1)
    assert content(memory.shared, 2) == encrypted(2, SECRET)
    assert content(memory.shared, 1) == content(memory.shared, 3) == bytes(PAGE_SIZE)


def test_looking_at_holes_does_not_fill_them(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(1, SECRET, cbit=True)
    memory.read_host_view(0, LAYOUT.pages)
    assert content(memory.shared, 3) == encrypted(3, bytes(PAGE_SIZE))
    assert list(memory.private.populated().numbers()) == [1]


@pytest.mark.attack("guest memory", "writes ciphertext into a private page", gains="nothing: garbage")
def test_ciphertext_the_host_writes_decrypts_to_garbage(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(1, SECRET, cbit=True)
    memory.shared.window(1, 1)[:] = NOTICE
    memory.write_host_view(1, 1)
    assert guest.read(1, cbit=True) == decrypted(1, NOTICE)


@pytest.mark.attack(
    "guest memory", "plays old ciphertext of a page back to its place", gains="as on silicon: the old content"
)
def test_old_ciphertext_replayed_to_its_place_brings_old_content_back(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    """As on silicon without RMP; README says so."""
    guest.write(1, SECRET, cbit=True)
    memory.read_host_view(1, 1)
    old = content(memory.shared, 1)
    guest.write(1, NOTICE, cbit=True)
    memory.shared.window(1, 1)[:] = old
    memory.write_host_view(1, 1)
    assert guest.read(1, cbit=True) == SECRET


@pytest.mark.attack("guest memory", "moves a page's ciphertext to another address", gains="nothing: garbage")
def test_ciphertext_moved_to_another_address_is_garbage(guest: ScriptedGuest, memory: GuestMemory) -> None:
    guest.write(1, SECRET, cbit=True)
    memory.read_host_view(1, 1)
    memory.shared.window(2, 1)[:] = content(memory.shared, 1)
    memory.write_host_view(2, 1)
    assert guest.read(2, cbit=True) == decrypted(2, encrypted(1, SECRET)) != SECRET


def test_a_host_write_makes_the_engine_forget_code_of_private_pages(guest: ScriptedGuest, memory: GuestMemory) -> None:
    memory.convert(2, 1, to_shared=True)
    memory.write_host_view(1, 3)
    assert guest.remapped[-1].numbers().tolist() == [1, 3]


# --- firmware's own reads and writes ----------------------------------------------------------------------------------


def test_what_firmware_patches_is_unsent_and_no_vcpu_goes_on_with_what_it_cached(
    guest: ScriptedGuest, memory: GuestMemory
) -> None:
    """Test a patch over the border of two pages of a guest that runs."""
    guest.write(1, SECRET, cbit=True)
    memory.take_unsent()
    gpa = 2 * PAGE_SIZE - 16
    memory.patch_private(gpa, b"from the debugger, 32 bytes long")
    assert bytes(memory.view_private(gpa, 32)) == b"from the debugger, 32 bytes long"
    assert guest.read(1, cbit=True)[:-16] == SECRET[:-16]
    assert guest.remapped[-1].numbers().tolist() == [1, 2]
    assert memory.take_unsent().numbers().tolist() == [1, 2]
    assert not memory.take_shared_dirty()


def test_firmwares_view_is_to_read_and_of_ram_alone(memory: GuestMemory) -> None:
    with pytest.raises(TypeError):
        memory.view_private(0, 16)[0] = 1
    for refused in (
        lambda: memory.view_private(LAYOUT.pages * PAGE_SIZE * 2, 16),
        lambda: memory.patch_private(1 << 40, bytes(16)),
        lambda: memory.read_vmsa(0),
    ):
        with pytest.raises(FirmwareError) as caught:
            refused()
        assert caught.value.status == Status.INVALID_ADDRESS


def test_a_vmsa_is_not_in_ram(memory: GuestMemory) -> None:
    page = filled("registers")
    memory.place_vmsa(0, page)
    assert memory.read_vmsa(0) == page
    assert not memory.private.populated()


# --- LAUNCH_UPDATE_DATA -----------------------------------------------------------------------------------------------


def test_a_launch_update_moves_measures_and_leaves_ciphertext(memory: GuestMemory) -> None:
    image = os.urandom(3 * PAGE_SIZE)
    memory.shared.data[PAGE_SIZE : 4 * PAGE_SIZE] = image
    measured = b"".join(bytes(part) for part in memory.move_to_private(PAGE_SIZE, 3 * PAGE_SIZE))
    assert measured == image == bytes(memory.private.data[PAGE_SIZE : 4 * PAGE_SIZE])
    for page in (1, 2, 3):
        start = (page - 1) * PAGE_SIZE
        assert content(memory.shared, page) == encrypted(page, image[start : start + PAGE_SIZE])


def test_two_updates_of_one_page_load_what_was_put_there_before_either(memory: GuestMemory) -> None:
    """Silicon encrypts in place, 16 bytes at a time; the rest of the page is still the VMM's."""
    image = os.urandom(PAGE_SIZE)
    memory.shared.window(1, 1)[:] = image
    measured = b""
    for start, length in ((0, 48), (48, PAGE_SIZE - 48)):
        measured += b"".join(bytes(part) for part in memory.move_to_private(PAGE_SIZE + start, length))
    assert measured == content(memory.private, 1) == image
    assert content(memory.shared, 1) == encrypted(1, image)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(LAYOUT.blocks[0].size - 16, 32), (LAYOUT.end - 16, 32), (LAYOUT.end, 16), (1 << 60, 16)],
)
def test_an_update_beyond_ram_is_an_invalid_address_and_moves_nothing(
    memory: GuestMemory, gpa: int, length: int
) -> None:
    memory.shared.data[:] = b"!" * LAYOUT.size
    with pytest.raises(FirmwareError) as refused:
        list(memory.move_to_private(gpa, length))
    assert refused.value.status == Status.INVALID_ADDRESS
    assert not memory.private.populated()


def digest_of(memory: GuestMemory) -> bytes:
    digest = hashlib.sha256()
    for part in memory.move_to_private(0, memory.layout.size):
        digest.update(part)
    return digest.digest()


@pytest.mark.attack("memory under way", "changes launch data while it is measured", gains="nothing")
def test_what_is_measured_is_what_was_loaded_whatever_the_vmm_writes_meanwhile() -> None:
    """A thread rewrites the shared plane all the time; measuring that plane itself is shown to fail."""
    memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), 4 << 20),)), KEY)
    ended = threading.Event()

    def rewrite() -> None:
        while not ended.is_set():
            np.add(memory.shared.words, 1, out=memory.shared.words)

    rewriter = threading.Thread(target=rewrite)
    rewriter.start()
    try:
        while hashlib.sha256(memory.shared.data).digest() == hashlib.sha256(memory.shared.data).digest():
            """The rewriter has not met a measurement yet."""
        for _ in range(20):
            measured = digest_of(memory)
            assert measured == hashlib.sha256(memory.private.data).digest()
    finally:
        ended.set()
        rewriter.join()
