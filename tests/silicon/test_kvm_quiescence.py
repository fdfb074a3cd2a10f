"""Holding vCPUs out of guest mode: none slips in, no order to leave is lost, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealift.silicon.engines.kvm.quiescence import Quiescence

Eventually = Callable[[Callable[[], bool]], None]


class FakeVcpu:
    """Enters as KvmVcpu does, but what it does inside is to wait for an order to leave.

    Attributes:
        entered: how often it was inside.
        orders: how often it was told to leave.
    """

    def __init__(self, quiescence: Quiescence) -> None:
        self.quiescence = quiescence
        self.entered = 0
        self.orders = 0
        self.inside = False
        self._ordered = threading.Event()

    def about_to_enter(self) -> None:
        """Forget the orders of the past: those of the future are given while it counts as inside."""
        assert not self.inside
        self.inside = True
        self.entered += 1
        self._ordered.clear()

    def leave_soon(self) -> None:
        """An order."""
        self.orders += 1
        self._ordered.set()

    def run(self) -> None:
        """Once in and out; 20 s without an order is one that was lost."""
        self.quiescence.enter(self)
        try:
            assert self._ordered.wait(20), "the order to leave was lost"
        finally:
            self.inside = False
            self.quiescence.left(self)


@pytest.fixture
def quiescence() -> Quiescence:
    return Quiescence()


@pytest.fixture
def vcpu(quiescence: Quiescence) -> FakeVcpu:
    return FakeVcpu(quiescence)


def test_nobody_is_inside_while_somebody_holds(
    quiescence: Quiescence, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    vcpus = [FakeVcpu(quiescence) for _ in range(3)]
    running = [threads.submit(vcpu.run) for vcpu in vcpus]
    eventually(lambda: all(vcpu.inside for vcpu in vcpus))
    with quiescence.held():
        assert not any(vcpu.inside for vcpu in vcpus)
        assert [vcpu.orders for vcpu in vcpus] == [1, 1, 1]
    for ended in running:
        ended.result()


def test_who_wants_in_waits_until_the_holder_lets_go(
    quiescence: Quiescence, vcpu: FakeVcpu, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    with quiescence.held():
        running = threads.submit(vcpu.run)
        eventually(lambda: waiting(quiescence) == 1)
        assert vcpu.entered == 0
    eventually(lambda: vcpu.inside)
    quiescence.nudge(vcpu)
    running.result()
    assert vcpu.orders == 1, "an order that was meant for others does not follow it in"


def test_who_waited_has_been_inside_before_the_next_holder_is_let_in(
    quiescence: Quiescence, vcpu: FakeVcpu, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    """Holding again at once, as a loop does that reads logs, must not keep a vCPU out for ever."""
    for turn in range(1, 51):
        with quiescence.held():
            running = threads.submit(vcpu.run)
            eventually(lambda: waiting(quiescence) == 1)
        with quiescence.held():
            assert vcpu.entered == turn
        running.result()


def test_no_order_is_lost_between_counting_as_inside_and_running(
    quiescence: Quiescence, threads: ThreadPoolExecutor
) -> None:
    """The order is tried at the one moment at which it could be: when the vCPU has just prepared to enter.

    It must wait for that to end, and then find the vCPU inside; else what the vCPU prepared would overwrite it.
    """
    held = threading.Event()

    class Slow(FakeVcpu):
        def about_to_enter(self) -> None:
            """Another thread starts holding in the middle of it."""
            self.holding = threads.submit(hold)
            assert not held.is_set()
            super().about_to_enter()
            assert not self.orders, "the order came before it could be kept"

    def hold() -> None:
        with quiescence.held():
            held.set()

    vcpu = Slow(quiescence)
    vcpu.run()
    vcpu.holding.result(20)
    assert (vcpu.orders, held.is_set()) == (1, True)


def test_orders_by_two_threads_and_entries_without_end_never_meet_badly(
    quiescence: Quiescence, threads: ThreadPoolExecutor
) -> None:
    """Each order is the only thing that ends an entry, so that one lost ends the test."""
    vcpus = [FakeVcpu(quiescence) for _ in range(2)]
    done = threading.Event()

    def enter(vcpu: FakeVcpu) -> None:
        while not done.is_set():
            vcpu.run()

    def hold() -> None:
        for _ in range(200):
            with quiescence.held():
                assert not any(vcpu.inside for vcpu in vcpus)

    entering = [threads.submit(enter, vcpu) for vcpu in vcpus]
    holding = [threads.submit(hold) for _ in range(2)]
    try:
        for ended in holding:
            ended.result()
    finally:
        done.set()
        while not all(ended.done() for ended in entering):
            for vcpu in vcpus:
                quiescence.nudge(vcpu)
    for ended in entering:
        ended.result()


def test_holding_again_changes_nothing_and_the_last_release_counts(
    quiescence: Quiescence, vcpu: FakeVcpu, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    with quiescence.held():
        with quiescence.held():
            running = threads.submit(vcpu.run)
            eventually(lambda: waiting(quiescence) == 1)
        assert waiting(quiescence) == 1, "it still waits"
        assert vcpu.entered == 0
    eventually(lambda: vcpu.inside)
    quiescence.nudge(vcpu)
    running.result()


def test_two_holders_exclude_each_other(
    quiescence: Quiescence, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    inside: list[str] = []

    def other() -> None:
        with quiescence.held():
            inside.append("other")

    with quiescence.held():
        waiter = threads.submit(other)
        eventually(lambda: waiting(quiescence) == 1)
        assert inside == []
    waiter.result()
    assert inside == ["other"]


def test_a_holder_that_fails_lets_go(quiescence: Quiescence, threads: ThreadPoolExecutor) -> None:
    def fail() -> None:
        with quiescence.held():
            raise LookupError

    with pytest.raises(LookupError):
        threads.submit(fail).result()
    with quiescence.held():
        pass


def test_a_nudge_reaches_the_vcpu_it_is_for_and_only_inside(
    quiescence: Quiescence, threads: ThreadPoolExecutor, eventually: Eventually
) -> None:
    nudged, other = FakeVcpu(quiescence), FakeVcpu(quiescence)
    quiescence.nudge(nudged)
    assert nudged.orders == 0
    running = [threads.submit(vcpu.run) for vcpu in (nudged, other)]
    eventually(lambda: nudged.inside and other.inside)
    quiescence.nudge(nudged)
    running[0].result()
    assert (nudged.orders, other.orders) == (1, 0)
    quiescence.nudge(other)
    running[1].result()


def waiting(quiescence: Quiescence) -> int:
    """Threads that wait to enter or to hold."""
    return len(quiescence._changed._waiters)  # type: ignore[attr-defined]
