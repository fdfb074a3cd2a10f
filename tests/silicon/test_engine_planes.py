"""Engine contract: which plane an access reaches, and that the logs and windows keep up with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealift.wire.platform import Halt, Interrupted

from .board import CODE, DATA, OPEN_DATA, OPEN_OTHER, OTHER, PD, PDPT, PML4, PT, Board, Ports
from .code import HLT, INC_AT_RBX, UD2, forever, inc, jump_to, load, mov, port_out, store, store_value
from .dram import encrypted

STORE_LOOP = forever(inc("rax") + store("rbx", "rax") + HLT)
"""One store for each run, always with warm translations from the second on."""


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shared", "plane"),
    [(DATA, False, "private"), (OPEN_DATA, False, "private"), (DATA, True, "private"), (OPEN_DATA, True, "shared")],
    ids=["c-bit, private", "no c-bit, private", "c-bit, shared", "no c-bit, shared"],
)
def test_data_reaches_the_shared_plane_only_without_c_bit_on_a_shared_page(
    board: Board, address: int, plane: str, *, shared: bool
) -> None:
    if shared:
        board.share(DATA)
    board.memory.private.words[DATA // 4096, 1] = 0xAAAA
    board.memory.shared.words[DATA // 4096, 1] = 0xBBBB
    assert board.execute(load("rax", "rsi") + store("rbx", "rdi") + HLT, rbx=address, rsi=address + 8, rdi=1) == Halt()
    assert board.value("rax") == {"private": 0xAAAA, "shared": 0xBBBB}[plane]
    written = {name for name, word in (("private", board.private(DATA)), ("shared", board.shared(DATA))) if word == 1}
    assert written == {plane}


def test_instructions_of_a_shared_page_come_from_the_private_plane_and_its_data_from_the_shared_one(
    board: Board,
) -> None:
    """Silicon fetches through the key whatever the C-bit says: no host can put code there."""
    if not board.kind.exact:
        pytest.skip("under KVM fetches and data of a page come from the same memory: see SPECIFICATION, known limits")
    code = load("rax", "rsi") + inc("rdx") + load("rcx", "rsi") + HLT
    board.share(DATA)
    board.memory.private.data[DATA : DATA + len(code)] = code
    board.memory.shared.data[DATA : DATA + 8] = UD2 * 4
    board.load(0, jump_to("rbx"), rbx=OPEN_DATA, rsi=OPEN_DATA)
    assert board.run() == Halt()
    assert board.value("rax") == board.value("rcx") == int.from_bytes(UD2 * 4, "little")
    assert board.value("rdx") == 1


def test_code_that_firmware_patches_is_what_runs_next(
    board: Board, threads: ThreadPoolExecutor, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """Test DBG_ENCRYPT under a loop that runs: code that was translated or cached must not run on."""
    code = {value: forever(mov("rax", value) + store("rbx", "rax")) for value in (1, 2)}
    board.load(0, code[1], rbx=DATA)
    running = threads.submit(board.run)
    try:
        eventually(lambda: board.private(DATA) == 1)
        board.memory.patch_private(board.memory.layout.gpa(CODE), code[2].ljust(32, HLT))
        eventually(lambda: board.private(DATA) == 2)
    finally:
        board.vcpus[0].kick()
        assert running.result(20) == Interrupted()


def test_page_walks_read_the_private_plane_whatever_the_state_of_the_table(board: Board) -> None:
    board.share(PT)
    board.memory.shared.words[PT // 4096] = 0
    assert board.execute(store_value(DATA, 5) + HLT) == Halt()
    assert board.private(DATA) == 5
    assert not board.memory.shared.words[PT // 4096].any(), "accessed bits go to the private plane too"


CALLER = forever(mov("rbx", DATA) + b"\xff\xd3" + HLT)  # call rbx
RETURN = b"\xc3"


def test_code_that_the_host_replaced_in_dram_is_what_runs(board: Board) -> None:
    """Replay works, as on silicon without RMP; what must not happen is that old translations run on."""
    old, new = inc("rdx") + RETURN, inc("rsi") + RETURN
    board.memory.private.data[DATA : DATA + 4] = old
    board.load(0, CALLER, rsp=OTHER + 0x800)
    assert board.run() == Halt()
    page = DATA // 4096
    board.memory.shared.window(page, 1)[:] = encrypted(page, new.ljust(4096, HLT), board.memory.layout)
    board.memory.write_host_view(page, 1)
    assert board.run() == Halt()
    assert (board.value("rdx"), board.value("rsi")) == (1, 1)


def test_code_that_came_through_a_flip_is_what_runs(board: Board) -> None:
    """The host chose the shared content so that its decryption is code."""
    old, new = inc("rdx") + RETURN, inc("rsi") + RETURN
    board.memory.write_private(DATA, old)
    board.load(0, CALLER, rsp=OTHER + 0x800)
    assert board.run() == Halt()
    board.share(DATA)
    page = DATA // 4096
    board.memory.shared.window(page, 1)[:] = encrypted(page, new.ljust(4096, HLT), board.memory.layout)
    board.hide(DATA)
    assert board.run() == Halt()
    assert (board.value("rdx"), board.value("rsi")) == (1, 1)


def test_a_guest_that_rewrites_its_own_code_runs_the_new_code(board: Board) -> None:
    call = mov("rbx", DATA) + b"\xff\xd3"  # call rbx
    board.memory.private.data[DATA : DATA + 4] = inc("rdx") + b"\xc3"
    rewrite = store_value(DATA, int.from_bytes(inc("rsi") + b"\xc3", "little"))
    assert board.execute(call + rewrite + call + HLT, rsp=OTHER + 0x800) == Halt()
    assert (board.value("rdx"), board.value("rsi")) == (1, 1)


# --- logs ---------------------------------------------------------------------------------------------------------


def test_each_window_has_its_own_log_whatever_the_state(board: Board) -> None:
    for flip in (lambda _: None, board.share, board.hide):
        flip(DATA)
        board.logged()
        assert board.execute(store_value(DATA, 1) + HLT) == Halt()
        encrypted, plain = board.logged()
        assert (DATA in encrypted, DATA in plain) == (True, False)
        assert board.execute(store_value(OPEN_DATA, 2) + HLT) == Halt()
        encrypted, plain = board.logged()
        assert (DATA in encrypted, DATA in plain) == (False, True)


def test_reads_and_fetches_are_not_logged(board: Board) -> None:
    board.execute(load("rax", "rbx") + HLT, rbx=DATA)  # sets accessed bits
    board.logged()
    board.execute(load("rax", "rbx") + load("rax", "rsi") + HLT, rbx=DATA, rsi=OPEN_OTHER)
    # Nested paging takes every step of a page walk for a write.
    assert board.logged()[0] <= ({PT} if board.kind.exact else {PML4, PDPT, PD, PT})


@pytest.mark.parametrize("address", [DATA, OPEN_DATA])
def test_every_write_after_the_logs_were_read_is_seen_again(pair: Board, address: int) -> None:
    """From both vCPUs, each with warm translations, several times over."""
    for index in (0, 1):
        pair.load(index, STORE_LOOP, rbx=address + index * 8)
        assert pair.run(index) == Halt()
    for index in (0, 1, 1, 0, 0, 1):
        pair.logged()
        assert pair.run(index) == Halt()
        assert DATA in set().union(*pair.logged())


def test_a_write_by_one_vcpu_does_not_hide_the_others(pair: Board) -> None:
    for index, page in enumerate((DATA, OTHER)):
        pair.load(index, STORE_LOOP, rbx=page)
        pair.run(index)
    pair.logged()
    pair.run(1)
    pair.run(0)
    assert {DATA, OTHER} <= pair.logged()[0]


def test_a_write_behind_a_port_access_is_seen_by_logs_that_were_read_during_it(board: Board) -> None:
    """The vCPU waits in the middle of a block, with warm translations; nothing ends the block before its store."""
    taken: list[set[int]] = []
    ports = Ports(during=lambda: taken.append(board.logged()[0]))
    code = store("rbx", "rax") + port_out(1) + store("rbx", "rdx") + HLT
    assert board.execute(code, ports, rbx=DATA, rdx=0x80) == Halt()
    assert DATA in taken[0]
    assert DATA in board.logged()[0]


def test_a_flip_during_a_port_access_counts_for_the_next_store(board: Board) -> None:
    ports = Ports(during=lambda: board.share(DATA))
    code = store("rbx", "rax") + port_out(1) + store("rbx", "rdx") + HLT
    assert board.execute(code, ports, rbx=OPEN_DATA, rax=1, rdx=0x80) == Halt()
    assert (board.private(DATA), board.shared(DATA)) == (1, 0x80)


# --- flips as the other vCPU sees them ----------------------------------------------------------------------------


def test_a_flip_is_seen_by_the_other_vcpu_at_once(pair: Board) -> None:
    """Its translations were warm; every store after the flip reaches the new plane and no other."""
    pair.load(1, STORE_LOOP, rbx=OPEN_DATA)
    pair.run(1)
    for flip, reached, left in ((pair.share, pair.shared, pair.private), (pair.hide, pair.private, pair.shared)) * 2:
        flip(DATA)
        before = left(DATA)
        assert pair.run(1) == Halt()
        assert reached(DATA) == pair.value("rax", 1)
        assert left(DATA) == before


def test_flips_while_the_other_vcpu_never_stops_writing_lose_no_store(
    pair: Board, threads: ThreadPoolExecutor, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """After each flip exactly one plane moves on, which the running vCPU itself writes."""
    pair.load(1, forever(inc("rax") + store("rbx", "rax")), rbx=OPEN_DATA)
    running = threads.submit(pair.run, 1)
    try:
        for _ in range(10):
            for flip, reached, left in (
                (pair.share, pair.shared, pair.private),
                (pair.hide, pair.private, pair.shared),
            ):
                flip(DATA)
                before = left(DATA)
                seen = reached(DATA)
                eventually(lambda reached=reached, seen=seen: reached(DATA) != seen)  # type: ignore[misc]
                assert left(DATA) == before
    finally:
        pair.vcpus[1].kick()
    assert running.result() == Interrupted()


def test_logs_read_while_a_vcpu_never_stops_writing_show_its_page_every_time(
    board: Board, threads: ThreadPoolExecutor, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    board.load(0, forever(INC_AT_RBX), rbx=DATA)
    running = threads.submit(board.run, 0)
    try:
        for _ in range(50):
            board.logged()
            before = board.private(DATA)
            eventually(lambda before=before: board.private(DATA) != before)  # type: ignore[misc]
            assert DATA in board.logged()[0]
    finally:
        board.vcpus[0].kick()
    assert running.result() == Interrupted()


def test_nobody_runs_while_the_guest_is_quiesced(
    board: Board, threads: ThreadPoolExecutor, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """Content read twice inside is the same; outside it moves on."""
    board.load(0, forever(INC_AT_RBX), rbx=DATA)
    running = threads.submit(board.run, 0)
    try:
        for _ in range(100):
            with board.engine.quiesced():
                before = board.private(DATA)
                other = threads.submit(lambda: sum(range(20_000)))
                other.result()
                assert board.private(DATA) == before
            eventually(lambda before=before: board.private(DATA) != before)  # type: ignore[misc]
    finally:
        board.vcpus[0].kick()
    assert running.result() == Interrupted()


def test_quiesced_can_be_entered_again(board: Board) -> None:
    with board.engine.quiesced(), board.engine.quiesced():
        board.logged()
    assert board.execute(HLT) == Halt()
