"""Method psp when something goes wrong: the guest runs on at the source, or is lost in no silence.

What an attacker on the wire can still do is here as well, as AMD's protocol has it: an altered packet is refused, but
a packet says neither where it belongs nor when it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness import readable
from sealift.errors import LostError, SealiftError
from sealift.vmm.migration import target
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.psp import PspTarget
from sealift.vmm.migration.sending import Returns
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.handover import FrameKind
from sealift.wire.platform import Phase
from sealift.wire.psp import RECORD_FRONT, RecordKind

from . import psp, rig
from .psp import Meddler, OnTheWire

_S = MigrationStatus
MAC, PAYLOAD, NONCE = 16 + 20, 16 + 52 + 100, 0
"""Offsets in a packet: nonce 16, header of flags 4, IV 16 and MAC 32, payload."""


def runs_on(world: rig.World, guest: rig.Guest) -> None:
    """The guest runs here, and both methods can move it: by its handler, then by its secure processor."""
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(4)
    second, _ = psp.moved(world, guest, Parameters())
    second.work(4)
    third, _ = psp.moved(world, second)
    third.work(4)


# --- altered ---------------------------------------------------------------------------------------------------------


def altered(offset: int) -> Callable[[Meddler, OnTheWire], bytes]:
    """The third packet with a bit flipped."""

    def meddle(meddler: Meddler, found: OnTheWire) -> bytes:
        wanted = found.front.kind is RecordKind.DATA and len(meddler.packets) == 2
        return found.flipped(offset) if wanted else found.data

    return meddle


@pytest.mark.attack("method psp", "changes a packet", gains="denial of service")
@pytest.mark.parametrize(
    ("offset", "reason"),
    [(MAC, "the packet's MAC fails"), (PAYLOAD, "the packet's MAC fails"), (NONCE, "the packet is of another session")],
)
def test_an_altered_packet_is_refused_and_the_guest_runs_on(sendable: rig.World, offset: int, reason: str) -> None:
    guest = sendable.start()
    guest.work(4)
    meddler = Meddler(altered(offset))
    attempt = rig.attempt(sendable, guest, psp.PAGEWISE, edit=meddler)
    attempt.begin()
    info = attempt.end()
    assert meddler.meddled == 1
    assert info.status == "failed", info
    assert reason in (info.error_desc or "")
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(4)


@pytest.mark.attack("method psp", "brings a packet of another session", gains="denial of service")
def test_a_packet_of_another_session_is_refused(sendable: rig.World) -> None:
    """Sessions have keys of their own: what was collected before a SEND_CANCEL is of no use after it."""
    guest = sendable.start()
    guest.work(4)
    collecting = Meddler(altered(MAC))
    first = rig.attempt(sendable, guest, psp.PAGEWISE, edit=collecting)
    first.begin()
    assert first.end().status == "failed"

    def replay(meddler: Meddler, found: OnTheWire) -> bytes:
        if found.front.kind is not RecordKind.DATA or len(meddler.packets) != 2:
            return found.data
        old = collecting.packets[1].record
        nonce = found.record[RECORD_FRONT : RECORD_FRONT + 16]
        return found.with_record(old[:RECORD_FRONT] + nonce + old[RECORD_FRONT + 16 :])

    second = rig.attempt(sendable, guest, psp.PAGEWISE, edit=Meddler(replay))
    second.begin()
    assert "the packet's MAC fails" in (second.end().error_desc or "")
    guest.work(4)


@pytest.mark.attack("method psp", "alters the target's certificates", gains="denial of service")
def test_a_tampered_chain_of_the_target_gets_nothing(sendable: rig.World, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = sendable.start()
    guest.work(4)
    answer = PspTarget.answer

    def tampered(target: PspTarget, offer: bytes) -> bytes:
        good = bytearray(answer(target, offer))
        good[1000] ^= 1
        return bytes(good)

    monkeypatch.setattr(PspTarget, "answer", tampered)
    attempt = rig.attempt(sendable, guest, psp.PARAMETERS)
    attempt.begin()
    info = attempt.end()
    assert "the policy has SEV, and the target's chain does not hold" in (info.error_desc or "")
    monkeypatch.undo()
    runs_on(sendable, guest)


# --- dropped, repeated, reordered ------------------------------------------------------------------------------------


def dropped(meddler: Meddler, found: OnTheWire) -> bytes:
    return b"" if found.front.kind is RecordKind.DATA and len(meddler.packets) == 2 else found.data


def repeated(meddler: Meddler, found: OnTheWire) -> bytes:
    return found.data * 2 if found.front.kind is RecordKind.DATA and len(meddler.packets) == 2 else found.data


@pytest.mark.parametrize(("meddle", "difference"), [(dropped, -1), (repeated, 1)])
def test_a_lost_or_doubled_packet_is_noticed_as_long_as_nobody_hides_it(
    sendable: rig.World, meddle: Callable[[Meddler, OnTheWire], bytes], difference: int
) -> None:
    guest = sendable.start()
    guest.work(4)
    meddler = Meddler(meddle)
    attempt = rig.attempt(sendable, guest, psp.PAGEWISE, edit=meddler)
    attempt.begin()
    info = attempt.end()
    sent = len(meddler.packets)
    assert f"the source sent {sent} packets, and {sent + difference} arrived" in (info.error_desc or "")
    guest.work(4)


@pytest.mark.attack(
    "method psp",
    "leaves a packet out, and corrects the count",
    gains="as AMD's protocol gives: a page is missing",
)
def test_an_attacker_can_hide_that_a_packet_is_missing(sendable: rig.World) -> None:
    """The count of packets is in clear and authenticated by nothing: the method does not promise completeness."""

    def hide(meddler: Meddler, found: OnTheWire) -> bytes:
        match found.front.kind:
            case RecordKind.END:
                return found.moved_to(found.front.place - 1)
            case RecordKind.DATA if len(meddler.packets) == 2:
                return b""
            case _:
                return found.data

    guest = sendable.start()
    guest.work(4)
    meddler = Meddler(hide)
    attempt = rig.attempt(sendable, guest, psp.PAGEWISE, edit=meddler)
    attempt.begin()
    assert attempt.end().status == "completed"
    assert meddler.meddled == 2
    attempt.guest()


@pytest.mark.attack(
    "method psp", "brings an old packet of the session again", gains="as AMD's protocol gives: a page is rolled back"
)
def test_an_old_packet_of_the_session_is_taken_for_a_new_one(hosts: Path) -> None:
    """Whatever is sent again is replaced by what was sent first, and nobody but the guest could notice."""
    first: dict[int, bytes] = {}
    stale: list[int] = []
    walks: list[int] = []

    def replay(meddler: Meddler, found: OnTheWire) -> bytes:
        if found.front.kind is not RecordKind.DATA:
            return found.data
        again = found.front.place in first
        # The guest overwrites all its pages in the middle of the first round, and in the second one.
        if len(meddler.packets) == 20 or (again and len(walks) == 1):
            walks.append(found.front.place)
            guest.work(32)
        if first.setdefault(found.front.place, found.record) != found.record:
            stale.append(found.front.place)
        return found.with_record(first[found.front.place])

    calm = rig.COMMAND_LINE.replace("pause=10000", "pause=40000")
    with rig.world(hosts, rig.recipe(command_line=calm), psp.SENDABLE) as world:
        guest = world.start()
        guest.work(16)
        meddler = Meddler(replay)
        slow = replace(psp.PAGEWISE, max_bandwidth=1_000_000, downtime_limit_ms=40)
        attempt = rig.attempt(world, guest, slow, edit=meddler)
        attempt.begin()
        assert attempt.end().status == "completed"
        assert len(walks) == 2
        assert stale


@pytest.mark.attack(
    "method psp", "exchanges the places of two packets", gains="as AMD's protocol gives: pages change places"
)
def test_packets_can_be_put_to_each_others_addresses(sendable: rig.World) -> None:
    """A packet's MAC covers no address."""

    def swap(meddler: Meddler, found: OnTheWire) -> bytes:
        if found.front.kind is not RecordKind.DATA or len(meddler.packets) >= 2:
            return found.data
        places.append(found.front.place)
        return found.moved_to(places[0] + 4096 if len(places) == 1 else places[0])

    places: list[int] = []
    guest = sendable.start()
    guest.work(4)
    attempt = rig.attempt(sendable, guest, psp.PAGEWISE, edit=Meddler(swap))
    attempt.begin()
    assert attempt.end().status == "completed"
    assert places == [places[0], places[0] + 4096]
    attempt.guest()


@pytest.mark.parametrize("kind", [RecordKind.VM, RecordKind.VCPU, RecordKind.END])
def test_what_is_due_and_does_not_come_is_said(sendable: rig.World, kind: RecordKind) -> None:
    def missing(_: Meddler, found: OnTheWire) -> bytes:
        return b"" if found.front.kind is kind else found.data

    guest = sendable.start()
    attempt = rig.attempt(sendable, guest, psp.PARAMETERS, edit=Meddler(missing))
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed", info
    assert (info.error_desc or "").startswith("the target refused: ")
    guest.work(4)


# --- cancelled, or left alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packets", [0, 3])
def test_a_cancelled_migration_leaves_the_guest_running_and_free_to_go_by_either_method(
    sendable: rig.World, packets: int
) -> None:
    guest = sendable.start()
    guest.work(4)

    def cancel(meddler: Meddler, found: OnTheWire) -> bytes:
        if len(meddler.packets) == packets:
            attempt.migration.cancel()
        return found.data

    attempt = rig.attempt(sendable, guest, psp.PAGEWISE, edit=Meddler(cancel))
    attempt.begin()
    assert attempt.end(listening=True).status == "cancelled"
    assert attempt.statuses[-2:] == [_S.CANCELLING, _S.CANCELLED]
    runs_on(sendable, guest)


def test_a_target_that_dies_before_it_is_prepared_costs_nothing(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(4)

    def kill(_: Meddler, found: OnTheWire) -> bytes:
        if found.front.kind is RecordKind.END:
            assert attempt.incoming._platform is not None
            attempt.incoming._platform.end()
        return found.data

    attempt = rig.attempt(sendable, guest, psp.PARAMETERS, edit=Meddler(kill))
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed", info
    assert not info.x_sealift_fenced
    guest.work(4)


def test_a_target_that_gives_up_once_it_was_prepared_is_heard_before_send_finish(
    sendable: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind SEND_FINISH it would cost the guest."""
    expect = Returns.expect

    def and_look_up(returns: Returns, kind: FrameKind, limit_s: float) -> bytes:
        payload = expect(returns, kind, limit_s)
        if kind is FrameKind.PREPARED:
            assert readable(returns._sock.fileno(), rig.PATIENCE_S)
        return payload

    def gives_up(_: object) -> bytes:
        raise LostError("the target was told to give up")

    guest = sendable.start()
    guest.work(4)
    monkeypatch.setattr(Returns, "expect", and_look_up)
    monkeypatch.setattr(target, "_expect_final", gives_up)
    attempt = rig.attempt(sendable, guest, psp.PARAMETERS)
    attempt.begin()
    info = attempt.end()
    assert "told to give up" in (info.error_desc or "")
    assert not info.x_sealift_fenced
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(4)


# --- behind SEND_FINISH ----------------------------------------------------------------------------------------------


def broken_at_final(world: rig.World, guest: rig.Guest, *, deliver: bool) -> rig.Attempt:
    """The line breaks with FINAL: before it arrives, or just behind it."""

    def edit(data: bytes, _: int) -> bytes:
        if b"SLPW" in data:
            attempt.cut(deliver=deliver)
        return data

    attempt = rig.attempt(world, guest, psp.PARAMETERS, edit=edit)
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed"
    assert info.x_sealift_fenced
    assert "SEND_FINISH has closed it here for good" in (info.error_desc or "")
    assert guest.machine.state is RunState.FINISH_MIGRATE
    assert guest.machine.platform.status().phase is Phase.GONE
    return attempt


def test_a_guest_whose_target_is_lost_behind_send_finish_runs_nowhere_and_its_user_is_told(sendable: rig.World) -> None:
    """AMD's protocol knows no way back from SEND_FINISH; two guests would be worse than none."""
    guest = sendable.start()
    guest.work(4)
    attempt = broken_at_final(sendable, guest, deliver=False)
    assert attempt.arrived is None
    assert not attempt.incoming.aborted
    with pytest.raises(SealiftError, match="this is not the STARTED"):
        attempt.migration.settle(attempt.incoming.aborted)
    guest.machine.platform.do(wire.Kick(0))
    with pytest.raises(SealiftError, match="not possible while the VM is gone"):
        guest.machine.platform.do(wire.SendCancel())


def test_a_guest_whose_start_was_not_heard_of_runs_at_the_target_alone(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(4)
    attempt = broken_at_final(sendable, guest, deliver=True)
    there = attempt.guest()
    there.work(8)
    assert attempt.arrived is not None
    attempt.migration.settle(attempt.arrived.started)
    assert attempt.migration.info().status == "completed"
    assert guest.machine.state is RunState.POSTMIGRATE
