"""A migration whose connections were lost goes on over others, with what had arrived; or it ends, as its user likes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sealift.address import PAGE_SHIFT
from sealift.errors import UserError
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.source import Migration
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.message import QmpError, Request
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method, Transfer

from . import rig
from .network import Network, network
from .test_orders import controlled

KEPT = Parameters(resume_window_s=60)
PAYLOAD_PAGES = 1024
"""What makes the guest's memory fill four records and some."""


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    recipe = replace(rig.recipe(megabytes=64), payload=os.urandom(PAYLOAD_PAGES << PAGE_SHIFT))
    with rig.world(hosts, recipe) as made:
        yield made


@dataclass
class Lost:
    """A migration whose connections were cut."""

    guest: rig.Guest
    attempt: rig.Attempt
    info: MigrationInfo
    net: Network

    def again(self, *, endless: bool = False) -> Migration:
        """What goes on with it."""
        before = self.attempt.migration
        made = Migration(
            self.guest.machine,
            self.guest.launched,
            self.guest.name,
            before.parameters if endless else replace(before.parameters, downtime_limit_ms=300),
            lambda _: None,
            SystemClock(),
            before.interrupted(),
        )
        if endless:
            rig.chase(made, self.guest, ENDLESS)
        return made

    def go_on(self) -> MigrationInfo:
        """Go on over another connection, to the end at both sides."""
        info = self.again().run(str(self.attempt.incoming.address))
        self.attempt._threads[0].join(rig.PATIENCE_S)
        return info


ENDLESS = 1 << 30
"""Rounds: the guest is never stopped, so whatever is lost is lost while it runs."""

Lose = Callable[..., Lost]


@pytest.fixture
def lose(world: rig.World) -> Iterator[Lose]:
    """Begins a migration of a new guest and cuts its connections as a rule says."""
    with ExitStack() as undo:

        def begin(rule: str, parameters: Parameters = KEPT) -> Lost:
            guest = world.start()
            guest.work(8)
            attempt = rig.attempt(
                world, guest, replace(parameters, downtime_limit_ms=0) if "record" in rule else parameters
            )
            net = undo.enter_context(network(attempt, rule))
            if "record" in rule:
                rig.chase(attempt.migration, guest, ENDLESS)
            attempt.begin()
            attempt._threads[1].join(rig.PATIENCE_S)
            assert attempt.info is not None
            undo.callback(attempt._threads[0].join, rig.PATIENCE_S)
            undo.callback(attempt.incoming.cancel)
            return Lost(guest, attempt, attempt.info, net)

        yield begin


def parameters(how: str) -> Parameters:
    match how:
        case "mailbox":
            return replace(KEPT, transfer=Transfer.MAILBOX)
        case "three channels":
            return replace(KEPT, multifd_channels=3, capabilities=frozenset({Capability.MULTIFD}))
        case _:
            return KEPT


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ("ring", "cut:record#3"),
        ("mailbox", "cut:record#700"),
        ("three channels", "cut:record/2#1"),
    ],
)
def test_it_goes_on_with_what_had_arrived(world: rig.World, lose: Lose, how: str, rule: str) -> None:
    lost = lose(rule, parameters(how))
    assert (lost.info.status, lost.info.x_sealift_resumable) == ("failed", True)
    assert "go on with sealift migrate ledger URI --resume" in (lost.info.error_desc or "")
    assert lost.guest.machine.state is RunState.RUNNING
    lost.guest.work(4)
    info = lost.go_on()
    assert info.status == "completed", info
    assert not lost.attempt.migration.info().x_sealift_resumable
    assert any("the source is waited for 60 s" in each for each in world.notices)
    assert info.ram is not None
    assert info.ram.normal < PAYLOAD_PAGES, "what had arrived was not sent again"
    lost.attempt.guest().work(32)


def test_a_connection_may_be_lost_again(lose: Lose) -> None:
    lost = lose("cut:record#3")
    for rule in ("cut:record#2", "cut:answer", "cut:record#1"):
        with network(lost.attempt, rule) as net:
            before, lost.attempt.migration = lost.attempt.migration, lost.again(endless=True)
            info = lost.attempt.migration.run(net.uri)
        assert (info.status, info.x_sealift_resumable) == ("failed", True), info
        with pytest.raises(UserError, match="no paused migration"):
            before.interrupted()
        lost.guest.work(4)
    assert lost.go_on().status == "completed"
    lost.attempt.guest().work(16)


def test_a_target_that_cannot_be_reached_yet_costs_nothing(lose: Lose, tmp_path: Path) -> None:
    lost = lose("cut:record#3")
    info = lost.again().run(f"unix:{tmp_path}/nobody")
    assert (info.status, info.x_sealift_resumable) == ("failed", True)
    lost.guest.work(4)


def test_others_are_sent_away_while_the_source_is_awaited(world: rig.World, lose: Lose) -> None:
    lost = lose("cut:record#3")
    stranger = rig.attempt(world, world.start())
    info = stranger.migration.run(str(lost.attempt.incoming.address))
    stranger.incoming.close()
    assert info.status == "failed"
    assert "a guest is awaited here whose source was lost" in (info.error_desc or "")
    assert lost.go_on().status == "completed"
    lost.attempt.guest().work(8)


def test_a_fresh_target_has_nothing_to_go_on_with(world: rig.World, lose: Lose) -> None:
    lost = lose("cut:record#3")
    other = rig.attempt(world, lost.guest)
    other.migration = lost.again()
    other.begin()
    info = other.end(listening=True)
    assert "nothing is kept here that could go on" in (info.error_desc or "")
    assert info.x_sealift_resumable, "the one that waits is still there"
    lost.guest.work(4)


@pytest.mark.parametrize("rule", ["cut:state", "cut:close", "cut:prepared"])
def test_a_guest_that_was_stopped_already_just_runs_on(lose: Lose, rule: str) -> None:
    lost = lose(rule)
    assert (lost.info.status, lost.info.x_sealift_resumable) == ("failed", False)
    lost.guest.work(4)


def test_without_a_window_it_fails_on_both_sides(lose: Lose) -> None:
    lost = lose("cut:record#3", Parameters())
    assert (lost.info.status, lost.info.x_sealift_resumable) == ("failed", False)
    lost.attempt._threads[0].join(rig.PATIENCE_S)
    assert "truncated" in (lost.attempt.refused or "")


def test_a_target_gives_up_when_its_time_is_over(lose: Lose) -> None:
    lost = lose("cut:record#3", replace(KEPT, resume_window_s=1))
    lost.attempt._threads[0].join(rig.PATIENCE_S)
    assert "for 1 s" in (lost.attempt.refused or "")
    info = lost.again().run(str(lost.attempt.incoming.address))
    assert info.status == "failed"
    lost.guest.work(4)


def test_qmp_goes_on_or_gives_it_up(lose: Lose) -> None:
    lost = lose("cut:record#3")
    user = controlled(lost.guest)
    user._migration = lost.attempt.migration
    assert lost.attempt.migration.info().x_sealift_resumable

    def call(name: str, **arguments: object) -> object:
        return COMMANDS.find(name).bind(Request(name, arguments), user)()

    call("migrate", uri=str(lost.attempt.incoming.address), resume=True)
    assert user._migrating is not None
    user._migrating.join(rig.PATIENCE_S)
    assert user.migration().status == "completed", user.migration()  # type: ignore[union-attr]  # there is one
    lost.attempt._threads[0].join(rig.PATIENCE_S)
    lost.attempt.guest().work(8)

    other = lose("cut:record#3")
    user = controlled(other.guest)
    user._migration = other.attempt.migration
    call("migrate_cancel")
    assert not other.attempt.migration.info().x_sealift_resumable
    with pytest.raises((QmpError, UserError), match="Cannot resume if there is no paused migration"):
        call("migrate", uri="tcp:127.0.0.1:1", resume=True)
    other.guest.work(4)


def test_a_new_migration_gives_up_what_could_go_on(world: rig.World, lose: Lose) -> None:
    lost = lose("cut:record#3")
    user = controlled(lost.guest)
    user._migration = lost.attempt.migration
    other = rig.attempt(world, lost.guest)
    other.migration = lost.attempt.migration
    user.migrate(f"tcp:127.0.0.1:{1}")
    assert user._migrating is not None
    user._migrating.join(rig.PATIENCE_S)
    other.incoming.close()
    assert not lost.attempt.migration.info().x_sealift_resumable
    lost.guest.work(4)


@pytest.mark.parametrize("method", [Method.PSP, Method.PLAIN])
def test_other_methods_know_no_legs(method: Method) -> None:
    with pytest.raises(UserError, match="cannot go on"):
        Parameters(method=method, resume_window_s=1)
