from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.cli.options import parse_size
from sealift.cli.progress import Advance, Lines, summary
from sealift.errors import UserError
from sealift.vmm.migration.stats import MigrationInfo, RamInfo
from sealift.vmm.migration.status import MigrationStatus


def at(status: str, transferred: int = 0, remaining: int = 0, rounds: int = 0) -> MigrationInfo:
    """A migration at one moment."""
    ram = RamInfo(
        transferred=transferred,
        remaining=remaining,
        total=1 << 30,
        duplicate=0,
        normal=0,
        normal_bytes=0,
        mbps=800.0,
        dirty_sync_count=rounds,
        page_size=4096,
        pages_per_second=0,
    )
    return MigrationInfo(MigrationStatus(status), ram=ram)


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), min_size=1))
def test_progress_never_runs_backwards_and_is_whole_only_at_the_end(steps: list[tuple[int, int]]) -> None:
    advance = Advance()
    shown = [advance.of(at("active", transferred, remaining, 1)) for transferred, remaining in steps]
    assert shown == sorted(shown)
    assert all(0 <= share < 1 for share in shown)
    assert advance.of(at("completed")) == 1


def test_there_is_a_line_for_each_status_and_one_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    lines = Lines("a", lambda: now)
    for seconds, info in (
        (0.0, at("setup")),
        (0.2, at("active", 1, 99, 1)),
        (9.0, at("active", 5, 9, 2)),
        (1.1, at("active", 7, 7, 3)),
        (9.9, at("active", 7, 7, 4)),
        (0.0, at("completed", 9, 0, 5)),
    ):
        now += seconds
        lines.show(info)
    assert [line.split(", ")[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["sealift: a: setup"],
        ["sealift: a: active", "round 1"],
        ["sealift: a: active", "round 3"],
        ["sealift: a: completed", "round 5"],
    ]


def test_throughput_is_in_bytes() -> None:
    assert summary(at("active", 1, 3 << 20, 2)) == "active, round 2, 3.0 MiB remaining, 100 MB/s"


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64k", 1 << 16), ("256M", 1 << 28), ("1 GiB", 1 << 30)])
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1X", "1GM"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)
