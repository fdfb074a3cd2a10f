"""Post-copy: no page is lost or installed twice, and nothing but what is due comes in, whoever sends it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import GuestError, SealError, SealiftError, UserError
from sealift.guest.handler.commit import State
from sealift.guest.handler.sealer import Pull
from sealift.launch.secrets import NO_FLAGS, MigrationFlags
from sealift.pageset import PageSet
from sealift.wire.record import RecordHeader
from sealift.wire.token import TokenKind

from .rig import MAILBOX, Hosts, Vmm, write_some


def switched(flags: MigrationFlags = NO_FLAGS, channels: int = 1) -> tuple[Hosts, Vmm, list[bytes]]:
    """Two hosts just behind the switch, and every record of before; pages 11 to 14, 33 and 50 are missing."""
    hosts = Hosts(flags=flags)
    write_some(hosts.guest)
    vmm = hosts.connect(channels)
    records = vmm.round()
    for page in (11, 12, 13, 14, 33, 50):
        hosts.guest.write(page, b"newer %d" % page)
    vmm.halt()
    assert hosts.source.leave_missing() == 6
    records += [*vmm.state(), hosts.source.close()]
    vmm.deliver(records)
    source, target = hosts.source, hosts.target
    source.deliver(target.token(TokenKind.PREPARED))
    target.deliver(source.token(TokenKind.FINAL))
    source.deliver(target.token(TokenKind.STARTED))
    assert (source.state, target.state) == (State.SERVING, State.FILLING)
    return hosts, vmm, records


def leg(hosts: Hosts) -> Vmm:
    hosts.source.begin_leg(hosts.target.answer_leg(hosts.source.ask_for_leg()))
    return Vmm(hosts, 2)


def pushed(vmm: Vmm, pages: int = 2) -> bytes:
    record = vmm.pull(0, pages)
    assert record is not None
    return record


def demanded(hosts: Hosts, page: int) -> bytes:
    record = hosts.source.seal_missing(page)
    assert record is not None
    return record


def test_missing_pages_are_holes_until_they_come_and_then_the_source_may_go() -> None:
    hosts, _, _ = switched()
    assert len(hosts.landed.missing) == 6
    assert not any(hosts.landed.content(11)), "what came before is old and gone"
    vmm = leg(hosts)
    vmm.deliver([demanded(hosts, 33), pushed(vmm), demanded(hosts, 50), pushed(vmm, 8)])
    assert hosts.same()
    assert hosts.target.state is State.STARTED
    assert hosts.source.state is State.SERVING, "until it hears of it"
    hosts.source.deliver(hosts.target.token(TokenKind.FILLED))
    assert vmm.source.state is State.GONE
    assert hosts.source.receipt()


def test_what_was_left_of_the_round_is_missing_too() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    hosts.source.begin_epoch()
    first = pushed(vmm, 4)
    vmm.halt()
    assert hosts.source.leave_missing() == 11
    vmm.deliver([first, hosts.source.end_epoch(0), *vmm.state(), hosts.source.close()])
    assert len(hosts.landed.missing) == 11


def test_a_stream_that_leaves_nothing_is_no_post_copy() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.deliver(vmm.round())
    vmm.halt()
    assert hosts.source.leave_missing() == 0
    vmm.deliver([*vmm.state(), hosts.source.close()])
    vmm.hand_over()


def test_a_guest_that_is_taken_back_before_final_has_lost_nothing() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.halt()
    hosts.source.leave_missing()
    hosts.source.cancel()
    hosts.guest.halted = False
    hosts.receive_anew()
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()


def test_a_target_whose_vcpus_cannot_wait_refuses_before_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.halt()
    hosts.source.leave_missing()
    hosts.source.begin_epoch()

    def cannot(_: PageSet) -> None:
        raise GuestError("no")

    monkeypatch.setattr(hosts.landed, "expect", cannot)
    with pytest.raises(GuestError):
        vmm.deliver([hosts.source.end_epoch(0), *vmm.state(), hosts.source.close()])
    hosts.source.deliver(hosts.target.token(TokenKind.ABORTED))
    assert hosts.source.state is State.RUNNING


def refused(hosts: Hosts, record: bytes) -> str:
    before = bytes(hosts.landed.ram), hosts.landed.missing.copy()
    with pytest.raises(SealError) as caught:
        hosts.target.open(memoryview(record))
    assert (bytes(hosts.landed.ram), hosts.landed.missing) == before, "a record that is refused changes nothing"
    assert hosts.target.may_run
    return str(caught.value)


@pytest.mark.attack("post-copy", "brings a record of missing pages again", gains="nothing")
def test_a_record_that_comes_again_is_refused_and_harms_nothing() -> None:
    hosts, _, _ = switched()
    vmm = leg(hosts)
    record = pushed(vmm)
    vmm.deliver([record])
    assert "out of turn" in refused(hosts, record)
    vmm.deliver([pushed(vmm, 8)])
    assert hosts.same()


@pytest.mark.attack("post-copy", "brings records of before the switch to a guest that runs", gains="nothing")
def test_no_record_of_before_the_switch_comes_in_behind_it() -> None:
    hosts, _, records = switched()
    assert all("before missing pages were asked for" in refused(hosts, record) for record in records)
    leg(hosts)
    assert all("leg" in refused(hosts, record) for record in records)


@pytest.mark.attack("post-copy", "swaps a demanded record to the channel of pushed ones", gains="nothing")
def test_a_record_is_of_its_channel() -> None:
    hosts, _, _ = switched()
    leg(hosts)
    record = bytearray(demanded(hosts, 33))
    record[12:16] = (0).to_bytes(4, "little")
    assert "not authentic" in refused(hosts, bytes(record))


@pytest.mark.attack(
    "post-copy", "flips a bit of a missing page", gains="denial of service: until the link is made anew"
)
@given(st.integers(0, 1 << 20))
def test_a_flipped_bit_is_refused_wherever_it_is_and_the_true_record_still_comes_in(place: int) -> None:
    hosts, _, _ = switched()
    leg(hosts)
    record = demanded(hosts, 33)
    forged = bytearray(record)
    forged[place // 8 % len(record)] ^= 1 << place % 8
    before = bytes(hosts.landed.ram)
    with pytest.raises(SealiftError):
        hosts.target.open(memoryview(forged))
    assert bytes(hosts.landed.ram) == before
    hosts.target.open(memoryview(record))
    assert hosts.landed.content(33) == hosts.guest.content(33)


@pytest.mark.attack("post-copy", "demands pages that were not missing, or were sent before", gains="nothing")
def test_no_page_is_sealed_that_is_not_missing_and_none_twice() -> None:
    hosts, _, _ = switched()
    vmm = leg(hosts)
    assert hosts.source.seal_missing(10) is None
    assert hosts.source.seal_missing(MAILBOX[0]) is None
    assert hosts.source.seal_missing(33) is not None
    assert hosts.source.seal_missing(33) is None
    with pytest.raises(UserError, match="not in RAM"):
        hosts.source.seal_missing(1 << 40)
    record = pushed(vmm, 8)
    assert RecordHeader.decode(record).count == 5
    assert hosts.source.seal_missing(50) is None


@pytest.mark.attack("post-copy", "has an old leg's records opened in a new one", gains="nothing")
def test_records_of_a_leg_that_was_lost_are_refused() -> None:
    hosts, _, _ = switched()
    old = pushed(leg(hosts))
    leg(hosts)
    assert "leg" in refused(hosts, old)


@pytest.mark.attack("post-copy", "asks for another leg with a request that was used", gains="nothing")
def test_a_leg_request_serves_once() -> None:
    hosts, _, _ = switched()
    request = hosts.source.ask_for_leg()
    hosts.target.answer_leg(request)
    with pytest.raises(SealError, match="already"):
        hosts.target.answer_leg(request)


@pytest.mark.attack("post-copy", "tells the source that all has come before it has", gains="nothing")
def test_the_source_keeps_its_memory_until_the_target_has_all() -> None:
    hosts, _, _ = switched()
    with pytest.raises(UserError, match="no FILLED token"):
        hosts.target.token(TokenKind.FILLED)
    forged = bytearray(hosts.target.token(TokenKind.STARTED))
    forged[6:8] = TokenKind.FILLED.to_bytes(2, "little")
    with pytest.raises(SealError):
        hosts.source.deliver(bytes(forged))
    assert hosts.source.state is State.SERVING


@pytest.mark.attack("post-copy", "cancels, aborts or offers anew behind the point of no return", gains="nothing")
def test_there_is_no_way_back() -> None:
    hosts, _, _ = switched()
    for refuse in (hosts.source.cancel, hosts.source.offer, hosts.source.begin_epoch, hosts.target.offer):
        with pytest.raises(UserError):
            refuse()
    hosts.target.cancel()
    assert hosts.target.state is State.FILLING
    with pytest.raises(UserError):
        hosts.target.token(TokenKind.ABORTED)


@given(
    st.randoms(use_true_random=False), st.sampled_from([NO_FLAGS, MigrationFlags.SKIP_ZERO_PAGES]), st.integers(1, 3)
)
def test_whatever_is_demanded_and_lost_no_page_is_lost_or_installed_twice(
    rng: random.Random, flags: MigrationFlags, channels: int
) -> None:
    """Pushes and demands in any order, channels at their own pace, links lost with what is on them, answers too."""
    hosts, _, _ = switched(flags, channels)
    for _ in range(8):
        request = hosts.source.ask_for_leg()
        if rng.random() < 0.3:
            continue  # the request is lost
        answer = hosts.target.answer_leg(request)
        if rng.random() < 0.3:
            continue  # the answer is
        hosts.source.begin_leg(answer)
        _carry(rng, hosts, Vmm(hosts, 2))
        if hosts.target.state is State.STARTED:
            break
    if hosts.target.state is State.FILLING:
        vmm = leg(hosts)
        while record := vmm.pull(0):
            vmm.deliver([record])
    assert hosts.same()  # FakeGuest.install asserts the rest
    hosts.source.deliver(hosts.target.token(TokenKind.FILLED))
    assert hosts.source.state is State.GONE


def _carry(rng: random.Random, hosts: Hosts, vmm: Vmm) -> None:
    """One leg, which ends at some moment with what is on its two connections."""
    underway: tuple[list[bytes], list[bytes]] = ([], [])
    while rng.random() < 0.9 and hosts.target.state is State.FILLING:
        match rng.randrange(3):
            case 0 if record := vmm.pull(0, rng.randint(1, 3)):
                underway[0].append(record)
            case 1 if record := hosts.source.seal_missing(rng.choice([11, 12, 13, 14, 33, 50, 10])):
                underway[1].append(record)
            case _:
                line = rng.choice(underway)
                if line:
                    vmm.deliver([line.pop(0)])


def test_pulls_are_counted_anew_in_each_leg() -> None:
    hosts, _, _ = switched()
    leg(hosts)
    hosts.source.pull(Pull(0, 1, 1), memoryview(bytearray(1 << 20)))
    leg(hosts)
    assert hosts.source.pull(Pull(0, 1, 6), memoryview(bytearray(1 << 20))).pages == 6
