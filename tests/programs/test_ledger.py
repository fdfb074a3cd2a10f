"""The ledger's own checks hold on a good machine and catch each thing a bad one can do to a page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import pytest

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import GUEST_GUID, MigrationSecret
from sealift.sev.secret import SecretEntry, build_table

from . import model
from .machine import Machine

SECRET = b"a secret that the owner planted, 45 bytes long"
MARKER = b"SEALIFT-CONTROL-MARKER"
WORKING_SET = 8
COMMAND_LINE = f"ws={WORKING_SET} flip=2 every=4 marker={MARKER.decode()}"


def ledger(command_line: str = COMMAND_LINE, vcpus: int = 1, **options: object) -> Machine:
    """A ledger guest with a secret, not yet run."""
    recipe = GuestRecipe(
        startup=startup_blob(),
        layout=RamLayout((RamBlock("pc.ram", Gpa(0), 16 << 20),)),
        vcpus=vcpus,
        handler_digest=bytes(32),
        kernel=program("ledger"),
        payload=b"payload " * 1001,
        command_line=command_line,
    )
    entries = [MigrationSecret(bytes(16), bytes(32)).entry(), SecretEntry(GUEST_GUID, SECRET)]
    return Machine(recipe, secret_block=build_table(entries), **options)  # type: ignore[arg-type]  # test options


def updates(guest: Machine, vcpu: int = 0) -> int:
    """The last count that the vCPU reported."""
    counts = [int(n) for n in re.findall(rf"^ledger {vcpu} (\d+) \w+\n", guest.console, re.MULTILINE)]
    return counts[-1] if counts else 0


def run_updates(guest: Machine, count: int) -> None:
    """Run until every vCPU has reported that many updates."""
    guest.run(lambda _: all(updates(guest, vcpu.number) >= count for vcpu in guest.vcpus))
    assert not guest.crash
    assert "FAULT" not in guest.console


def fault(guest: Machine) -> str:
    """Run on until the guest has ended itself; its last words."""
    guest.run_to_the_end()
    lines = [line for line in guest.console.splitlines() if "FAULT" in line]
    assert len(lines) == 1
    return lines[0]


def working_page(guest: Machine, page: int) -> int:
    """GPA of a working-set page of vCPU 0, found by its content; not of one in the middle of an update."""
    first = updates(guest) // WORKING_SET
    for generation in range(first + 3, max(first - 2, 0), -1):
        at = guest.private_plane.find(model.content(model.LEDGER, 0, page, generation, SECRET))
        if at >= 0:
            return at
    raise AssertionError(f"page {page} of the working set was not found")


def flip_pages(guest: Machine) -> list[int]:
    """GPAs of the pages that are shared now: the mailbox, the kept page and flipped ones, without the mailbox."""
    mailbox = guest.recipe.areas().mailbox
    return sorted(guest.shared - set(range(mailbox.gpa, mailbox.end, PAGE_SIZE)))


def test_vcpu_0_prints_the_digest_of_the_payload() -> None:
    guest = ledger()
    run_updates(guest, 4)
    expected = hashlib.sha256(guest.recipe.payload[:]).hexdigest()
    assert guest.console.startswith(f"payload sha256 {expected}\n")


def test_each_vcpu_prints_the_chain_that_follows_from_secret_and_working_set() -> None:
    guest = ledger(vcpus=2)
    run_updates(guest, 40)
    for vcpu in range(2):
        expected = model.chains(vcpu, updates(guest, vcpu), WORKING_SET, SECRET)
        lines = re.findall(rf"^ledger {vcpu} (\d+) (\w+)$", guest.console, re.MULTILINE)
        assert [int(count) for count, _ in lines] == list(range(4, updates(guest, vcpu) + 1, 4))
        assert all(expected[int(count)] == digest for count, digest in lines)


def test_lines_of_two_vcpus_never_mix() -> None:
    """The serial port is so slow that both vCPUs always have a line to send."""
    guest = ledger("ws=1 every=1 flip=0", vcpus=2, slice=503, serial_polls=60)
    run_updates(guest, 12)
    whole = guest.console[: guest.console.rindex("\n")]
    assert all(re.fullmatch(r"(payload sha256|ledger [01] \d+) [0-9a-f]{64}", line) for line in whole.split("\n"))


def test_pages_go_back_and_forth_and_the_secret_is_never_seen_where_the_marker_is() -> None:
    guest = ledger()
    run_updates(guest, 200)
    # 50 steps over two pages and the kept one: each page passes through its cycle of four several times.
    assert guest.conversions > 12
    assert guest.shared_plane.find(MARKER) >= 0
    assert guest.shared_plane.find(SECRET) == -1
    untouched = [(updates(guest) + ahead) % WORKING_SET for ahead in range(4, WORKING_SET)]
    assert all(SECRET in guest.page(working_page(guest, page)) for page in untouched)


def test_a_page_written_only_through_the_c0_view_keeps_its_content() -> None:
    guest = ledger()
    run_updates(guest, 60)
    kept = model.content(model.KEPT, 0, 0, 1, MARKER)
    assert guest.shared_plane.find(kept) in flip_pages(guest)


def test_a_guest_without_encryption_keeps_its_ledger_and_flips_nothing() -> None:
    guest = ledger(c_bit=None)
    run_updates(guest, 40)
    assert guest.conversions == 0


def test_pauses_come_between_bursts() -> None:
    guest = ledger("ws=2 every=4 burst=4 pause=1500")
    run_updates(guest, 40)
    assert set(guest.pauses) == {1500}
    assert abs(len(guest.pauses) - updates(guest) // 4) <= 1


def test_the_payload_is_digested_anew_when_asked_for() -> None:
    guest = ledger("ws=2 every=4 again=6 flip=0")
    run_updates(guest, 20)
    payload = guest.recipe.payload[:]
    lines = re.findall(r"^payload sha256 (\w+)$", guest.console, re.MULTILINE)
    assert lines == [hashlib.sha256(payload).hexdigest()] * len(lines)
    assert len(lines) in {4, 5}
    at = guest.private_plane.find(payload)
    guest.private_plane[at] ^= 1
    run_updates(guest, updates(guest) + 12)
    changed = hashlib.sha256(bytes([payload[0] ^ 1]) + payload[1:]).hexdigest()
    assert guest.console.count(f"payload sha256 {changed}\n") >= 1


def test_options_have_defaults() -> None:
    guest = ledger("")
    run_updates(guest, 128)
    assert updates(guest) % 64 == 0
    assert not guest.pauses
    expected = model.chains(0, updates(guest), 64, SECRET)[-1]
    assert f"ledger 0 {updates(guest)} {expected}\n" in guest.console


def test_a_working_set_larger_than_memory_is_said_so() -> None:
    assert fault(ledger("ws=100000")).startswith("ledger FAULT 0 no-memory ")


def make_stale(guest: Machine, _page: int, at: int) -> None:
    old = guest.page(at)
    run_updates(guest, updates(guest) + WORKING_SET + 4)
    assert guest.page(at) != old
    guest.set_page(at, old)


def swap(guest: Machine, page: int, at: int) -> None:
    other = working_page(guest, (page + 1) % WORKING_SET)
    mine, theirs = guest.page(at), guest.page(other)
    guest.set_page(at, theirs)
    guest.set_page(other, mine)


def zero(guest: Machine, _page: int, at: int) -> None:
    guest.set_page(at, bytes(PAGE_SIZE))


def flip_last_bit(guest: Machine, _page: int, at: int) -> None:
    content = bytearray(guest.page(at))
    content[-1] ^= 0x80
    guest.set_page(at, bytes(content))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(make_stale, "stale"), (swap, "swapped"), (zero, "stale"), (flip_last_bit, "private")],
)
def test_a_damaged_page_of_the_working_set_is_noticed(damage: Callable[[Machine, int, int], None], said: str) -> None:
    guest = ledger("ws=8 flip=0 every=1", slice=5000)
    run_updates(guest, 30)
    page = (updates(guest) + WORKING_SET // 2) % WORKING_SET
    damage(guest, page, working_page(guest, page))
    assert re.match(rf"ledger FAULT 0 {said} page \d at 0x[0-9a-f]+ word \d+ expected", fault(guest))


def test_a_lost_shared_page_is_noticed() -> None:
    guest = ledger(slice=5000)
    kept = model.content(model.KEPT, 0, 0, 1, MARKER)
    guest.run(lambda _: len(flip_pages(guest)) == 3 and updates(guest) > 20)
    for gpa in flip_pages(guest):
        if guest.shared_plane[gpa : gpa + PAGE_SIZE] != kept:
            guest.shared_plane[gpa : gpa + PAGE_SIZE] = bytes(PAGE_SIZE)
    assert fault(guest).startswith("ledger FAULT 0 shared page ")


def test_the_loss_of_the_kept_page_is_noticed() -> None:
    guest = ledger()
    run_updates(guest, 20)
    at = guest.shared_plane.find(model.content(model.KEPT, 0, 0, 1, MARKER))
    guest.shared_plane[at + 100] ^= 1
    assert fault(guest).startswith("ledger FAULT 0 kept page 0 ")


def test_a_conversion_that_shows_plaintext_is_noticed() -> None:
    assert fault(ledger(keeps_plaintext=True)).startswith("ledger FAULT 0 leak page 0 ")


def test_shared_content_left_on_the_private_side_is_noticed() -> None:
    guest = ledger()
    guest.run(lambda _: len(flip_pages(guest)) == 3)
    guest.keeps_plaintext = True
    assert fault(guest).startswith("ledger FAULT 0 residue page ")


def test_a_private_side_that_a_conversion_leaves_alone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old private content must not come back: on silicon both views share one page of DRAM."""
    monkeypatch.setattr(Machine, "convert_to_private", lambda guest, page: guest.shared.discard(page))
    assert fault(ledger()).startswith("ledger FAULT 0 residue page ")


def test_a_lost_private_page_among_the_flipped_ones_is_noticed() -> None:
    guest = ledger(slice=5000)
    run_updates(guest, 20)
    first = guest.shared_plane.find(model.content(model.KEPT, 0, 0, 1, MARKER)) + PAGE_SIZE
    second_turn = model.content(model.PRIVATE, 0, 0, 2, SECRET)
    guest.run(lambda _: guest.page(first) == second_turn)
    assert first not in guest.shared
    guest.set_page(first, bytes(PAGE_SIZE))
    assert fault(guest).startswith("ledger FAULT 0 flip-private page 0 ")


def test_a_refused_declaration_is_said_so() -> None:
    guest = ledger()
    guest.run(lambda console: "payload" in console)
    guest.refuses = True
    assert fault(guest).startswith("ledger FAULT 0 hypercall page ")


def test_a_fault_of_one_vcpu_stops_the_others() -> None:
    guest = ledger(vcpus=3)
    run_updates(guest, 20)
    page = (updates(guest) + WORKING_SET // 2) % WORKING_SET
    guest.set_page(working_page(guest, page), bytes(PAGE_SIZE))
    fault(guest)
    assert all(vcpu.halted for vcpu in guest.vcpus)
