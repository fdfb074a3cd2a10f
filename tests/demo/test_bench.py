"""Benchmarks run, measure something, and show it. How fast it is, no test says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from harness import Sealift
from sealift.cli.bench.exits import ExitsResult
from sealift.cli.bench.idle import cpu_s, peak_bytes
from sealift.cli.bench.migrate import MigrateResult
from sealift.cli.bench.pipe import RECORD_PAGES, raw_pipe, whole_records
from sealift.cli.bench.show import show_exits, show_migration


def test_the_raw_pipe_moves_whole_records() -> None:
    assert whole_records(1) == 1
    assert whole_records(RECORD_PAGES * 4096 + 1) == 2
    assert raw_pipe(4 << 20) > 0


def test_a_process_has_used_time_and_memory() -> None:
    before = cpu_s(os.getpid())
    sum(range(1_000_000))
    assert cpu_s(os.getpid()) > before
    assert peak_bytes(os.getpid()) > 1 << 20


def test_runs_and_medians_are_shown_in_columns() -> None:
    shown = show_migration(
        MigrateResult(1 << 30, 2e9, 4e9, 0.5, 12345.0, [1e9, 2e9, 3e9], [4e9, 4e9, 5e9], [1.0, 12345.0, 99999.0])
    )
    lines = shown.splitlines()
    assert lines[0].startswith("1,024 MiB")
    assert lines[3].split() == ["raw", "pipe", "4.00", "GB/s", "4.00", "GB/s", "5.00", "GB/s", "4.00", "GB/s"]
    assert len({len(line) for line in lines[2:6]}) == 1
    assert "0.50 of the raw pipe" in lines[-1]


def test_where_the_time_of_an_exit_goes_is_shown() -> None:
    shown = show_exits(
        ExitsResult(20_000, "unicorn", 8e-6, 4e-6, 24e-6, 0.5, 3.0, [8e-6, 9e-6], [4e-6, 3e-6], [24e-6, 30e-6])
    )
    lines = shown.splitlines()
    assert "engine unicorn" in lines[0]
    assert lines[3].split() == ["bare", "ping-pong", "8.0", "us", "9.0", "us", "8.0", "us"]
    assert len({len(line) for line in lines[2:6]}) == 1
    assert "0.50 of the bare ping-pong" in shown
    assert "20.0 us are the engine's" in lines[-1]


def test_exits_are_measured_three_ways(sealift: Callable[..., Sealift]) -> None:
    bench = sealift("bench", "exits", "--exits", "100", "--runs", "2", "--json")
    assert bench.process.wait(100) == 0, bench.report()
    result = json.loads(bench.stdout.finish())
    assert result["ratio"] == pytest.approx(result["link_s"] / result["socket_s"])
    assert result["guest_s"] > result["link_s"] / 10
    assert len(result["socket_runs"]) == len(result["link_runs"]) == len(result["guest_runs"]) == 2


@pytest.mark.timeout(300)
def test_a_small_migration_is_measured_both_ways(sealift: Callable[..., Sealift]) -> None:
    bench = sealift("bench", "migrate", "--size", "2M", "--runs", "2", "--json")
    assert bench.process.wait(280) == 0
    result = json.loads(bench.stdout.finish())
    assert result["ratio"] == pytest.approx(result["sealed_bytes_per_s"] / result["raw_pipe_bytes_per_s"])
    assert len(result["sealed_runs"]) == len(result["raw_pipe_runs"]) == len(result["mailbox_runs"]) == 2
    assert result["mailbox_pages_per_s"] > 0
