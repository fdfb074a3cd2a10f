"""How a migration is watched, with a VMM that tests play."""

from __future__ import annotations

import signal
from base64 import b64decode
from typing import Any, cast

import pytest

from sealift.cli.qmp_client import QmpClient
from sealift.cli.tokens import brought
from sealift.cli.watch import Choice, Display, Order, attach, describe, migrate
from sealift.errors import RefusedError, UserError
from sealift.vmm.migration.stats import MigrationInfo, RamInfo
from sealift.vmm.migration.status import MigrationStatus

_S = MigrationStatus


class Vmm:
    """Answers as it was told; `states` are the migration's, one for each look."""

    guest = "a"

    def __init__(self, states: list[MigrationInfo], refusals: dict[str, str] | None = None) -> None:
        self.states = states
        self.refusals = refusals or {}
        self.wished: dict[str, object] = {}
        self.executed: list[str] = []
        self.token = b""
        self.interrupt_at = -1
        self.obstacles: list[dict[str, str]] = []

    def execute(self, command: str, **arguments: Any) -> object:
        """See QmpClient."""
        self.executed.append(command)
        if command in self.refusals:
            raise RefusedError(self.refusals[command])
        match command:
            case "migrate":
                self.wished[command] = arguments["x-sealift-parameters"]
            case "x-sealift-preflight":
                self.wished[command] = arguments["x-sealift-parameters"]
                blocks = any(obstacle["severity"] == "blocker" for obstacle in self.obstacles)
                return {"possible": not blocks, "obstacles": self.obstacles}
            case "x-sealift-settle":
                self.token = b64decode(arguments["token"])
        return {}

    def query(self, command: str, _: object) -> object:
        """See QmpClient."""
        self.executed.append(command)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def ask_for_migration_events(self) -> None:
        """See QmpClient."""

    def next_event(self, _: float) -> None:
        """See QmpClient."""
        if len(self.states) == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)


def watched(vmm: Vmm, **parameters: object) -> tuple[MigrationInfo, list[str]]:
    """The outcome, and what was said."""
    said: list[str] = []
    order = Order("tcp:b:1", parameters)
    return migrate(cast("QmpClient", vmm), order, Display(lambda _: None, said.append)), said


ACTIVE, DEVICE, COMPLETED = map(MigrationInfo, (_S.ACTIVE, _S.DEVICE, _S.COMPLETED))


def test_ctrl_c_that_comes_too_late_is_answered_and_the_outcome_is_awaited() -> None:
    vmm = Vmm([ACTIVE, DEVICE, DEVICE, COMPLETED], {"migrate_cancel": "it is too late to cancel"})
    vmm.interrupt_at = 3
    info, said = watched(vmm)
    assert info == COMPLETED
    assert len(said) == 1
    assert said[0].startswith("it is too late to cancel; waiting for the outcome")
    assert vmm.executed.count("migrate_cancel") == 1


def test_what_would_help_a_migration_that_does_not_end_is_said_once() -> None:
    stuck = MigrationInfo(_S.ACTIVE, x_sealift_advice="raise the downtime limit")
    _, said = watched(Vmm([ACTIVE, stuck, stuck, COMPLETED]))
    assert said == ["raise the downtime limit"]


def test_parameters_are_for_one_migration() -> None:
    vmm = Vmm([COMPLETED])
    watched(vmm, **{"downtime-limit": 7})
    assert vmm.wished == {"x-sealift-preflight": {"downtime-limit": 7}, "migrate": {"downtime-limit": 7}}
    assert "migrate-set-parameters" not in vmm.executed


def test_of_a_guest_that_is_fenced_nobody_says_where_it_runs() -> None:
    reason = "the target is gone; it is not known whether the guest runs on the target"
    fenced = MigrationInfo(_S.FAILED, error_desc=reason, x_sealift_fenced=True)
    assert "not moved" not in describe("a", "tcp:b:1", fenced)
    assert reason in describe("a", "tcp:b:1", fenced)
    assert "not moved" in describe("a", "tcp:b:1", MigrationInfo(_S.FAILED, error_desc="the target is gone"))


@pytest.mark.parametrize(("after", "outcome"), [("completed", "runs on the target"), ("failed", "runs on here")])
def test_a_token_is_brought_as_it_is_and_the_outcome_said(after: str, outcome: str) -> None:
    vmm = Vmm([MigrationInfo(MigrationStatus(after))])
    token = bytes(range(116))
    assert outcome in brought(cast("QmpClient", vmm), token)
    assert vmm.token == token


# --- attaching, detaching, checking --------------------------------------------------------------------------------


def answering(choice: Choice) -> tuple[Display, list[Choice]]:
    """A display whose user answers so, and how often it was asked."""
    asked: list[Choice] = []

    def ask() -> Choice:
        asked.append(choice)
        return choice

    return Display(lambda _: None, lambda _: None, ask), asked


def test_who_detaches_leaves_the_migration_alone() -> None:
    vmm = Vmm([ACTIVE, ACTIVE, ACTIVE, ACTIVE, COMPLETED])
    vmm.interrupt_at = 2
    display, asked = answering(Choice.DETACH)
    info = attach(cast("QmpClient", vmm), display)
    assert info == ACTIVE
    assert asked == [Choice.DETACH]
    assert vmm.executed.count("migrate_cancel") == 0
    assert "attaches to it again" in describe("a", None, info)


def test_who_goes_on_sees_the_end_and_can_be_asked_again() -> None:
    vmm = Vmm([ACTIVE, ACTIVE, ACTIVE, ACTIVE, COMPLETED])
    vmm.interrupt_at = 2
    display, asked = answering(Choice.GO_ON)
    assert attach(cast("QmpClient", vmm), display) == COMPLETED
    assert asked == [Choice.GO_ON]
    assert vmm.executed.count("migrate_cancel") == 0


def test_an_attached_watcher_can_cancel() -> None:
    vmm = Vmm([ACTIVE, ACTIVE, ACTIVE, ACTIVE, MigrationInfo(_S.CANCELLED)])
    vmm.interrupt_at = 2
    display, _ = answering(Choice.CANCEL)
    assert attach(cast("QmpClient", vmm), display).status == "cancelled"
    assert vmm.executed.count("migrate_cancel") == 1
    assert "migrate" not in vmm.executed


@pytest.mark.parametrize("status", [_S.NONE, _S.COMPLETED, _S.FAILED, _S.CANCELLED])
def test_there_is_nothing_to_attach_to_when_no_migration_is_underway(status: MigrationStatus) -> None:
    with pytest.raises(UserError, match="no migration of guest a is underway"):
        attach(cast("QmpClient", Vmm([MigrationInfo(status)])), answering(Choice.CANCEL)[0])


def test_what_is_in_the_way_keeps_a_migration_from_beginning_and_is_all_said() -> None:
    vmm = Vmm([COMPLETED])
    vmm.obstacles = [
        {"code": "ram-short", "severity": "blocker", "reason": "too little memory"},
        {"code": "clock-skew", "severity": "warning", "reason": "the clocks differ"},
        {"code": "owner-refuses", "severity": "blocker", "reason": "not there"},
    ]
    with pytest.raises(RefusedError, match=r"too little memory \(ram-short\); and not there \(owner-refuses\)"):
        watched(vmm, **{"downtime-limit": 7})
    assert "migrate" not in vmm.executed
    unchecked = Order("tcp:b:1", {}, check=False)
    assert migrate(cast("QmpClient", vmm), unchecked, answering(Choice.CANCEL)[0]) == COMPLETED


def test_a_warning_is_said_and_the_migration_begins() -> None:
    vmm = Vmm([COMPLETED])
    vmm.obstacles = [{"code": "clock-skew", "severity": "warning", "reason": "the clocks differ"}]
    info, said = watched(vmm)
    assert info == COMPLETED
    assert said == ["warning: the clocks differ (clock-skew)"]


def test_the_outcome_names_what_the_guest_waited_for() -> None:
    ram = RamInfo(1 << 20, 0, 1 << 20, 0, 0, 0, 1.0, 2, 4096, 1)
    parts = {"stop": 1.0, "last-pages": 2.5, "state": 0.5, "commit": 3.0, "start": 1.0}
    told = describe("a", "tcp:b:1", MigrationInfo(_S.COMPLETED, downtime=8, ram=ram, x_sealift_downtime_parts=parts))
    assert told.endswith("8 ms of downtime (stop 1.0, last-pages 2.5, state 0.5, commit 3.0, start 1.0)")
