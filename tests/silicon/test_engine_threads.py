"""Engine contract: vCPUs in threads; nothing is executed twice, nothing is lost, and a kick is never missed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealift.wire.platform import Halt, Interrupted

from .board import CODE, DATA, Board, Ports
from .code import HLT, INC_AT_RBX, LOCK, XADD_AT_RBX_RAX, forever, inc, mov, port_in, times

COUNTING = forever(inc("rax") + INC_AT_RBX)
"""Counts in a register and in memory."""

Eventually = Callable[[Callable[[], bool]], None]


def assert_counters_agree(board: Board, index: int, address: int) -> int:
    """The memory counter may be behind by the one instruction that is due; the count."""
    count, rip = board.value("rax", index), board.vcpus[index].registers().rip
    due = rip == CODE + index * 0x1000 + len(inc("rax"))
    assert board.private(address) == count - due
    return count


# --- kicks --------------------------------------------------------------------------------------------------------


def test_a_kick_ends_a_tight_loop(board: Board, threads: ThreadPoolExecutor, eventually: Eventually) -> None:
    board.load(0, COUNTING, rbx=DATA)
    running = threads.submit(board.run)
    eventually(lambda: board.private(DATA) > 0)
    board.vcpus[0].kick()
    assert running.result(10) == Interrupted()
    assert assert_counters_agree(board, 0, DATA) > 0


def test_a_kick_before_the_run_ends_the_next_run_and_no_other(board: Board) -> None:
    board.load(0, inc("rax") + HLT)
    board.vcpus[0].kick()
    board.vcpus[0].kick()
    assert board.run() == Interrupted()
    assert board.value("rax") == 0
    assert board.run() == Halt()


def test_no_kick_is_lost_wherever_it_falls(board: Board, threads: ThreadPoolExecutor) -> None:
    """Each run of an endless loop is kicked exactly once, at a moment that nobody chooses."""
    board.load(0, COUNTING, rbx=DATA)
    for _ in range(500):
        running = threads.submit(board.run)
        board.vcpus[0].kick()
        assert running.result(10) == Interrupted()


def test_kicks_in_the_middle_of_work_repeat_and_skip_no_instruction(
    board: Board, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    board.load(0, COUNTING, rbx=DATA)
    for _ in range(500):
        before = board.private(DATA)
        running = threads.submit(board.run)
        eventually(lambda before=before: board.private(DATA) != before)  # type: ignore[misc]
        board.vcpus[0].kick()
        assert running.result(10) == Interrupted()
        assert_counters_agree(board, 0, DATA)


def test_a_kick_reaches_its_own_vcpu_alone(pair: Board, threads: ThreadPoolExecutor, eventually: Eventually) -> None:
    for index in (0, 1):
        pair.load(index, COUNTING, rbx=DATA + index * 8)
    running = [threads.submit(pair.run, index) for index in (0, 1)]
    try:
        pair.vcpus[0].kick()
        assert running[0].result(10) == Interrupted()
        before = pair.private(DATA + 8)
        eventually(lambda: pair.private(DATA + 8) > before)
        assert not running[1].done()
    finally:
        pair.vcpus[1].kick()
    assert running[1].result(10) == Interrupted()


# --- turns --------------------------------------------------------------------------------------------------------


def test_preemptions_repeat_and_skip_no_instruction(
    pair: Board, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    """Two vCPUs preempt one another, and a third party holds both out again and again."""
    for index in (0, 1):
        pair.load(index, COUNTING, rbx=DATA + index * 8)
    running = [threads.submit(pair.run, index) for index in (0, 1)]
    try:
        for _ in range(500):
            with pair.engine.quiesced():
                for index in (0, 1):
                    assert_counters_agree(pair, index, DATA + index * 8)
        eventually(lambda: min(pair.private(DATA), pair.private(DATA + 8)) > 0)
    finally:
        for vcpu in pair.vcpus:
            vcpu.kick()
    assert [each.result(10) for each in running] == [Interrupted()] * 2
    for index in (0, 1):
        assert_counters_agree(pair, index, DATA + index * 8)


@pytest.mark.parametrize(
    ("code", "step"),
    [(LOCK + INC_AT_RBX, 1), (mov("rax", 3) + LOCK + XADD_AT_RBX_RAX, 3)],
    ids=["lock inc", "lock xadd"],
)
def test_locked_additions_of_two_vcpus_lose_nothing(
    pair: Board, threads: ThreadPoolExecutor, code: bytes, step: int
) -> None:
    """Both vCPUs add to one counter while their logs are read, which keeps flushing their translations."""
    rounds = 150_000
    for index in (0, 1):
        pair.load(index, times(rounds, code) + HLT, rbx=DATA)
    running = [threads.submit(pair.run, index) for index in (0, 1)]
    while not all(each.done() for each in running):
        pair.logged()
    assert [each.result() for each in running] == [Halt()] * 2
    assert pair.private(DATA) == 2 * rounds * step


def test_a_vcpu_that_waits_in_a_port_access_lets_the_other_run(
    pair: Board, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    answered = threading.Event()
    asked = threading.Event()

    def wait() -> None:
        asked.set()
        assert answered.wait(20)

    pair.load(0, port_in(1) + HLT, rdx=0x80)
    waiting = threads.submit(pair.run, 0, Ports([5], during=wait))
    assert asked.wait(20)
    pair.load(1, inc("rax") + HLT)
    assert pair.run(1) == Halt()
    with pair.engine.quiesced():
        assert not waiting.done()
    answered.set()
    assert waiting.result(10) == Halt()
    assert pair.value("rax", 0) == 5
    eventually(waiting.done)


def test_every_hlt_halts_once_however_often_the_vcpu_is_disturbed(pair: Board, threads: ThreadPoolExecutor) -> None:
    pair.load(0, forever(inc("rax") + HLT))
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            with pair.engine.quiesced():
                """Nothing to do but to keep the vCPU out."""

    disturbing = threads.submit(disturb)
    try:
        for count in range(1, 501):
            assert pair.run(0) == Halt()
            assert pair.value("rax", 0) == count
    finally:
        ended.set()
    disturbing.result()
