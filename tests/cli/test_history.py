"""What is remembered of migrations, and for how long."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealift.cli.history import KEPT, Entry, Figures, History, keep_history
from sealift.errors import UserError
from sealift.vmm.events import Direction, MigrationChanged
from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.plan import Experience
from sealift.vmm.migration.status import MigrationStatus
from sealift.wire.handover import Method

FIGURES = Figures(total_time=1200, downtime=12, transferred=1 << 20, rounds=3)


def entry(number: int) -> Entry:
    return Entry(number, "a", "tcp:b:1", "completed", FIGURES, FIGURES if number % 2 else None)


def test_migrations_are_remembered_in_order_and_the_oldest_go(tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    assert history.entries() == []
    for number in range(KEPT + 3):
        history.add(entry(number))
    assert history.entries() == [entry(number) for number in range(3, KEPT + 3)]
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("somebody's diary\n")
    for use in (History(path).entries, lambda: History(path).add(entry(1))):
        with pytest.raises(UserError, match="does not parse"):
            use()
    assert path.read_text() == "somebody's diary\n"


def test_every_ended_migration_away_from_here_is_put_on_record_once(tmp_path: Path) -> None:
    guest, history, said = Guest("a", Parameters()), History(tmp_path / "history"), list[str]()
    keep_history(guest, history, said.append, lambda: 77.7)
    for direction, status in (
        (Direction.INCOMING, MigrationStatus.COMPLETED),
        (Direction.OUTGOING, MigrationStatus.ACTIVE),
        (Direction.OUTGOING, MigrationStatus.FAILED),
    ):
        guest.events.publish(MigrationChanged(direction, status))
    (found,) = history.entries()
    assert (found.ended, found.guest, found.status, found.predicted) == (77, "a", "failed", None)
    (tmp_path / "history").write_text("?")
    guest.events.publish(MigrationChanged(Direction.OUTGOING, MigrationStatus.FAILED))
    assert len(said) == 1
    assert "does not parse" in said[0]


def test_a_plan_learns_from_migrations_by_the_same_method_and_first_from_those_to_the_same_place(
    tmp_path: Path,
) -> None:
    history = History(tmp_path / "history")
    assert history.experience(Method.MH, "tcp:b:1") is None

    def add(uri: str, method: Method, status: str, setup_ms: int) -> None:
        figures = Figures(1200, 30, 1 << 20, 3, setup_time=setup_ms, standstill=setup_ms // 10)
        history.add(Entry(1, "a", uri, status, figures, method=method.value))

    add("tcp:b:1", Method.PSP, "completed", 9000)
    add("tcp:b:1", Method.MH, "failed", 9000)
    assert history.experience(Method.MH, "tcp:b:1") is None
    for setup_ms in (400, 200, 300):
        add("tcp:c:1", Method.MH, "completed", setup_ms)
    assert history.experience(Method.MH, "tcp:b:1") == Experience(3, 0.3, 0.03)
    add("tcp:b:1", Method.MH, "completed", 100)
    assert history.experience(Method.MH, "tcp:b:1") == Experience(1, 0.1, 0.01)
