"""`sealift.tamper` between two real hosts: every verb, with what becomes of the guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sealift.tamper.rules import Chances, parse
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method, Transfer
from sealift.wire.platform import Phase

from . import rig
from .certificates import Authority
from .network import network

PAGE_BY_PAGE = Parameters(transfer=Transfer.MAILBOX)
"""Many records, so that some have a number."""


def stays(attempt: rig.Attempt, guest: rig.Guest) -> None:
    """The guest runs on where it was, and nowhere else, with nothing lost."""
    assert attempt.arrived is None
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(8)


def moved(attempt: rig.Attempt, guest: rig.Guest) -> None:
    """The guest runs at the target, and nowhere else, with nothing lost."""
    there = attempt.guest()
    there.work(8)
    assert guest.machine.platform.status().phase in {Phase.FENCED, Phase.GONE}
    assert guest.machine.state is not RunState.RUNNING


def test_without_rules_a_guest_moves_as_over_any_network(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt) as between:
        attempt.begin()
        assert attempt.end().status == "completed"
        assert between.tamperer.first_over.wait(rig.PATIENCE_S)
        source, target = between.names("source"), between.names("target")
    assert source[:5] == ["front", "blocks", "hello", "confirm", "record"]
    assert source[-3:] == ["description", "final", "taken"]
    assert {"epoch", "ram", "state", "close", "device"} < set(source)
    assert target == ["answer", "prepared", "started", "receipt"]
    summary = between.summary()
    assert (summary.connections, summary.messages) == (1, len(source) + len(target))
    assert summary.bytes > len(attempt.wire)
    moved(attempt, guest)


@pytest.mark.parametrize(
    ("rule", "done", "reason"),
    [
        ("drop:record#3", "record#3 dropped", "not for this place"),
        ("repeat:record#3", "record#3 repeated", "not for this place"),
        ("reorder:record#3,record#4", "record#3 goes behind record#4", "not for this place"),
        ("flip:record#3@bit=7777", "record#3 bit 7777 flipped", "not authentic"),
        ("cut:record#3@byte=100", "record#3 the link is cut", "the target is gone"),
    ],
)
@pytest.mark.attack("network", "tampers with what the source sends, on the wire", gains="denial of service")
def test_what_the_source_sends_and_is_tampered_with_is_refused(
    world: rig.World, rule: str, done: str, reason: str
) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, PAGE_BY_PAGE)
    with network(attempt, rule) as between:
        attempt.begin()
        info = attempt.end(listening=True)
    assert [said[: len(done)] for said in between.done()] == [done]
    assert info.status == "failed", info
    assert re.search(reason, info.error_desc or ""), info.error_desc
    stays(attempt, guest)


@pytest.mark.attack(
    "network", "drops or alters any message, whichever it is, of either side", gains="denial of service"
)
@pytest.mark.parametrize(
    "rule",
    [
        *(f"drop:{name}" for name in ("hello", "confirm", "description", "answer")),
        *(f"flip:{name}" for name in ("prepared", "final", "started")),
    ],
)
def test_whatever_message_is_dropped_or_altered_the_guest_runs_in_one_place(
    world: rig.World, tmp_path: Path, rule: str
) -> None:
    world.token_path = tmp_path / "token"
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, rule) as between:
        attempt.begin()
        between.tampered()
        if rule in ("drop:hello", "drop:answer", "drop:description"):
            attempt.incoming.cancel()  # both sides would wait for long
        info = attempt.end(listening=True)
    assert [outcome.times for outcome in between.summary().rules] == [1]
    if info.x_sealift_fenced:
        attempt.migration.settle(world.token_path.read_bytes())
    if attempt.arrived is None:
        assert info.status == "failed"
        stays(attempt, guest)
    else:
        assert attempt.migration.info().status == "completed"
        moved(attempt, guest)


def test_the_same_seed_flips_the_same_bit_and_another_seed_another() -> None:
    rule = parse("flip:record")
    bits = [Chances(seed).bit(rule, 0, 1 << 20) for seed in (5, 5, 6)]
    assert bits[0] == bits[1] != bits[2]


def test_a_delayed_word_is_only_late(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, "delay:prepared=2s", "delay:source>bytes@byte=100=500ms") as between:
        attempt.begin()
        assert attempt.end().status == "completed"
    assert between.waits == [0.5, 2.0]
    assert [outcome.times for outcome in between.summary().rules] == [1, 1]
    moved(attempt, guest)


@pytest.mark.attack(
    "network", "keeps PREPARED back, so that the source does not learn that all has come", gains="denial of service"
)
def test_without_prepared_the_source_takes_its_guest_back(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, "drop:prepared") as between:
        attempt.begin()
        between.tampered()
        attempt.migration.cancel()
        info = attempt.end()
    assert info.status == "cancelled"
    assert not info.x_sealift_fenced
    stays(attempt, guest)


@pytest.mark.attack("network", "drops FINAL, and lets the target's ABORTED through", gains="denial of service")
def test_without_final_the_targets_abort_gives_the_guest_back(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, "drop:final") as between:
        between.at["close"] = lambda: setattr(attempt.incoming, "patience", Patience(reply_s=0.2))
        attempt.begin()
        info = attempt.end()
        assert between.names("target")[-1] == "aborted"
    assert info.status == "failed"
    assert not info.x_sealift_fenced
    stays(attempt, guest)


@pytest.mark.attack("network", "cuts the link before STARTED arrives", gains="denial of service")
def test_a_link_that_is_cut_before_started_leaves_the_guest_at_the_target(world: rig.World, tmp_path: Path) -> None:
    world.token_path = tmp_path / "token"
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, "cut:started"):
        attempt.begin()
        info = attempt.end()
    assert info.x_sealift_fenced
    attempt.migration.settle(world.token_path.read_bytes())
    assert attempt.migration.info().status == "completed"
    moved(attempt, guest)


@pytest.mark.parametrize("rule", ["repeat:final", "repeat:started", "drop:taken"])
@pytest.mark.attack("network", "repeats or drops the last words of a handover", gains="denial of service")
def test_last_words_that_are_tampered_with_change_nothing(world: rig.World, rule: str) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    with network(attempt, rule) as between:
        attempt.begin()
        assert attempt.end().status == "completed"
        assert between.tamperer.first_over.wait(rig.PATIENCE_S)
    assert [outcome.times for outcome in between.summary().rules] == [1]
    moved(attempt, guest)


def test_a_rule_is_used_up_and_the_next_attempt_goes_through(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    first = rig.attempt(world, guest)
    with network(first, "cut:record") as between:
        first.begin()
        assert first.end().status == "failed"
        second = rig.attempt(world, guest)
        between.lead_to(second)
        second.begin()
        assert second.end().status == "completed"
        assert between.summary().connections == 2
    moved(second, guest)


@pytest.mark.attack("network", "drops a record on one of several channels", gains="denial of service")
def test_every_channels_connection_has_messages_of_its_own(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    several = Parameters(multifd_channels=2, capabilities=frozenset({Capability.MULTIFD}))
    attempt = rig.attempt(world, guest, several)
    with network(attempt, "drop:epoch/1") as between:
        attempt.begin()
        info = attempt.end()
    assert between.done() == ["epoch#1 dropped"]
    assert info.status == "failed"
    stays(attempt, guest)


@pytest.mark.attack("network", "alters a packet between two secure processors (method psp)", gains="denial of service")
def test_packets_of_secure_processors_have_names_too(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(4)
    attempt = rig.attempt(sendable, guest, Parameters(method=Method.PSP))
    with network(attempt, "flip:record@byte=5000") as between:
        attempt.begin()
        info = attempt.end()
    assert info.status == "failed"
    assert "MAC fails" in (info.error_desc or "")
    stays(attempt, guest)
    whole = rig.attempt(sendable, guest, Parameters(method=Method.PSP))
    with network(whole) as between:
        whole.begin()
        assert whole.end().status == "completed"
    assert {"record", "regions", "vm", "vcpu", "end", "ram", "device", "final"} < set(between.names("source"))
    moved(whole, guest)


@pytest.mark.attack("network", "flips a bit of what TLS encrypts", gains="denial of service")
def test_tls_is_passed_on_as_bytes_which_can_be_flipped(world: rig.World, tmp_path: Path) -> None:
    authority = Authority()
    for side in ("client", "server"):
        authority.issue(tmp_path / side, side)
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, Parameters(tls_creds=str(tmp_path / "client")), tls=tmp_path / "server")
    with network(attempt, "flip:source>bytes@byte=20000", "drop:record") as between:
        attempt.begin()
        info = attempt.end()
    assert between.names("source") == []
    assert [outcome.times for outcome in between.summary().rules] == [1, 0]
    assert info.status == "failed"
    stays(attempt, guest)
