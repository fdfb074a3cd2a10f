"""A vCPU's link: every message arrives as it was, nobody sleeps through one, and a dead peer ends every wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sealift.errors import InternalError, LostError
from sealift.wire import platform as wire
from sealift.wire.exits import PlatformEnd, VmmEnd, exit_link, vmm_end
from sealift.wire.lookout import PATIENCE_NS

Link = tuple[VmmEnd, PlatformEnd]

LONG_NS = 10_000_000_000

EXITS: list[wire.Exit] = [
    wire.Interrupted(),
    wire.PortIn(0xFFFF, 4),
    wire.PortOut(0x3F8, 1, 0xFFFF_FFFF),
    wire.MmioRead((1 << 52) - 1, 8),
    wire.MmioWrite((1 << 64) - 1, 8, (1 << 64) - 1),
    wire.PageStateChange(1 << 40, 512, encrypted=False),
    wire.Halt(),
    wire.Fault("page fault", (1 << 64) - 1, 0, 2),
    wire.Failed("a sentence", "UserError", None),
]

RUNS = [wire.Run(), wire.Run((1 << 64) - 1), wire.Run(1, immediate_exit=True)]


@pytest.fixture
def make_link() -> Iterator[Callable[[int], Link]]:
    """Both ends, with so many nanoseconds of patience."""
    with contextlib.ExitStack() as ending:

        def make(patience_ns: int) -> Link:
            platform, parts = exit_link(patience_ns=patience_ns)
            vmm = vmm_end(parts, patience_ns=patience_ns)
            ending.callback(platform.close)
            ending.callback(vmm.close)
            return vmm, platform

        yield make


@pytest.fixture(params=[0, 1, PATIENCE_NS, LONG_NS], ids=["sleeps", "sleeps soon", "as always", "looks long"])
def link(request: pytest.FixtureRequest, make_link: Callable[[int], Link]) -> Link:
    """Both ends, at every length of patience: the ways of waiting must not differ in what arrives."""
    return make_link(request.param)


@pytest.fixture
def peer() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_every_message_arrives_as_it_was(link: Link) -> None:
    vmm, platform = link
    for run in RUNS:
        for left in EXITS:
            vmm.send(run)
            assert platform.receive() == run
            platform.send(left)
            assert vmm.receive() == left


def test_no_message_is_slept_through(link: Link, peer: ThreadPoolExecutor) -> None:
    """Pauses around the lengths of patience make the ends fall asleep at every possible moment."""
    vmm, platform = link

    def serve() -> None:
        for number in range(2000):
            assert platform.receive() == wire.Run(number)
            if number % 7 == 0:
                time.sleep(number % 5 * PATIENCE_NS / 2e9)
            platform.send(wire.PortIn(number, 1))

    served = peer.submit(serve)
    for number in range(2000):
        vmm.send(wire.Run(number))
        assert vmm.receive() == wire.PortIn(number, 1)
        if number % 11 == 0:
            time.sleep(number % 5 * PATIENCE_NS / 2e9)
    served.result()


@pytest.mark.parametrize("ending", ["close", "shutdown"])
def test_a_peer_that_goes_ends_a_wait_that_is_underway(link: Link, peer: ThreadPoolExecutor, ending: str) -> None:
    vmm, platform = link
    if platform._patience_ns > PATIENCE_NS:
        pytest.skip("so much patience has no link in use")
    waiting = peer.submit(vmm.receive)
    time.sleep(0.05)
    getattr(platform, ending)()
    with pytest.raises(LostError):
        waiting.result(10)
    with pytest.raises(LostError):
        vmm.receive()


def test_what_a_peer_said_before_it_went_is_heard(link: Link) -> None:
    vmm, platform = link
    platform.send(wire.Halt())
    platform.close()
    assert vmm.receive() == wire.Halt()
    if not vmm._patience_ns:
        return
    with pytest.raises(LostError):
        vmm._sleep(vmm._received + 1)


def test_a_wait_uses_no_processor(make_link: Callable[[int], Link], peer: ThreadPoolExecutor) -> None:
    vmm, platform = make_link(PATIENCE_NS)

    def wait() -> float:
        before = time.thread_time()
        vmm.receive()
        return time.thread_time() - before

    used = peer.submit(wait)
    time.sleep(0.3)
    platform.send(wire.Halt())
    assert used.result() < 0.1


def test_looking_does_not_keep_other_threads_from_running(
    make_link: Callable[[int], Link], peer: ThreadPoolExecutor
) -> None:
    vmm, platform = make_link(LONG_NS)
    looking = peer.submit(vmm.receive)
    late = []
    for _ in range(20):
        begun = time.monotonic()
        time.sleep(0.001)
        late.append(time.monotonic() - begun)
    platform.send(wire.Halt())
    assert looking.result() == wire.Halt()
    assert sorted(late)[len(late) // 2] < 0.5


def test_looking_in_vain_is_given_up_and_taken_up_again(make_link: Callable[[int], Link]) -> None:
    """An end that is always answered late hardly looks any more; one that is answered soon keeps looking."""
    vmm, _ = make_link(PATIENCE_NS)
    looks = 0
    while vmm._balance_ns >= 0:
        vmm._look(1)
        looks += 1
    assert looks <= 20
    vmm._their_words[0] = 1
    sleeps = 0
    while vmm._balance_ns < 0:
        vmm._sleep(1)
        sleeps += 1
    assert sleeps > 1
    vmm._look(1)
    assert vmm._balance_ns >= 0


def test_what_does_not_fit_a_page_is_our_own_fault(make_link: Callable[[int], Link]) -> None:
    _, platform = make_link(PATIENCE_NS)
    with pytest.raises(InternalError, match="does not fit"):
        platform.send(wire.Failed("x" * 4096))
