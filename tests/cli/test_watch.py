"""How a migration is watched, with a VMM that tests play."""

from __future__ import annotations

import signal
from base64 import b64decode
from pathlib import Path
from typing import Any, cast

import pytest

from sealift.cli.qmp_client import QmpClient
from sealift.cli.watch import Display, describe, migrate, settle
from sealift.errors import RefusedError
from sealift.vmm.migration.stats import MigrationInfo


class Vmm:
    """Answers as it was told; `states` are the migration's, one for each look."""

    guest = "a"

    def __init__(self, states: list[MigrationInfo], refusals: dict[str, str] | None = None) -> None:
        self.states = states
        self.refusals = refusals or {}
        self.parameters: dict[str, object] = {"downtime-limit": 300, "x-sealift-transfer": "ring"}
        self.used: dict[str, object] = {}
        self.executed: list[str] = []
        self.token = b""
        self.interrupt_at = -1

    def execute(self, command: str, **arguments: Any) -> object:
        """See QmpClient."""
        self.executed.append(command)
        if command in self.refusals:
            raise RefusedError(self.refusals[command])
        match command:
            case "migrate-set-parameters":
                self.parameters |= {name.replace("_", "-"): value for name, value in arguments.items()}
            case "migrate":
                self.used = dict(self.parameters)
            case "x-sealift-settle":
                self.token = b64decode(arguments["token"])
        return {}

    def query(self, command: str, _: object) -> object:
        """See QmpClient."""
        self.executed.append(command)
        if command == "query-migrate-parameters":
            return dict(self.parameters)
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
    return migrate(cast("QmpClient", vmm), "tcp:b:1", parameters, Display(lambda _: None, said.append)), said


ACTIVE, DEVICE, COMPLETED = (MigrationInfo(status) for status in ("active", "device", "completed"))


def test_ctrl_c_that_comes_too_late_is_answered_and_the_outcome_is_awaited() -> None:
    vmm = Vmm([ACTIVE, DEVICE, DEVICE, COMPLETED], {"migrate_cancel": "it is too late to cancel"})
    vmm.interrupt_at = 3
    info, said = watched(vmm)
    assert info == COMPLETED
    assert len(said) == 1
    assert said[0].startswith("it is too late to cancel; waiting for the outcome")
    assert vmm.executed.count("migrate_cancel") == 1


def test_what_would_help_a_migration_that_does_not_end_is_said_once() -> None:
    stuck = MigrationInfo("active", x_sealift_advice="raise the downtime limit")
    _, said = watched(Vmm([ACTIVE, stuck, stuck, COMPLETED]))
    assert said == ["raise the downtime limit"]


def test_parameters_are_for_one_migration() -> None:
    vmm = Vmm([COMPLETED])
    watched(vmm, **{"downtime-limit": 7})
    assert vmm.used == {"downtime-limit": 7, "x-sealift-transfer": "ring"}
    assert vmm.parameters == {"downtime-limit": 300, "x-sealift-transfer": "ring"}


def test_parameters_are_given_back_even_when_the_migration_does_not_begin() -> None:
    vmm = Vmm([COMPLETED], {"migrate": "not now"})
    with pytest.raises(RefusedError, match="not now"):
        watched(vmm, **{"downtime-limit": 7})
    assert vmm.parameters["downtime-limit"] == 300


def test_of_a_guest_that_is_fenced_nobody_says_where_it_runs() -> None:
    reason = "the target is gone; it is not known whether the guest runs on the target"
    fenced = MigrationInfo("failed", error_desc=reason, x_sealift_fenced=True)
    assert "not moved" not in describe("a", "tcp:b:1", fenced)
    assert reason in describe("a", "tcp:b:1", fenced)
    assert "not moved" in describe("a", "tcp:b:1", MigrationInfo("failed", error_desc="the target is gone"))


@pytest.mark.parametrize(("after", "outcome"), [("completed", "runs on the target"), ("failed", "runs on here")])
def test_a_token_is_brought_as_it_is_and_the_outcome_said(tmp_path: Path, after: str, outcome: str) -> None:
    vmm = Vmm([MigrationInfo(after)])
    token = bytes(range(116))
    (tmp_path / "token").write_bytes(token)
    assert outcome in settle(cast("QmpClient", vmm), tmp_path / "token")
    assert vmm.token == token
