"""Benchmarks run, measure something, and show it. How fast it is, no test says."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import msgspec
import pytest

import judges
from harness import Sealift
from sealift.cli.bench.boot import Boot, BootResult, seconds_until
from sealift.cli.bench.cputime import cpu_s, family
from sealift.cli.bench.debug import DebugResult, measure_debug
from sealift.cli.bench.exits import ExitsResult, port_guest
from sealift.cli.bench.idle import IdleGuest, IdleResult, Watch, measure_idle, peak_bytes, wait_for_rest
from sealift.cli.bench.migrate import MigrateResult, Wanted, measure_migration
from sealift.cli.bench.pipe import RECORD_PAGES, raw_pipe, whole_records
from sealift.cli.bench.qemu import PROGRAM
from sealift.cli.bench.show import show_boot, show_debug, show_exits, show_idle, show_migration
from sealift.cli.scratch import scratch
from sealift.errors import LostError, UserError
from sealift.vmm.migration.stats import DowntimePart
from sealift.wire import platform as wire


def test_the_raw_pipe_moves_whole_records() -> None:
    assert whole_records(1) == 1
    assert whole_records(RECORD_PAGES * 4096 + 1) == 2
    piped = raw_pipe(4 << 20)
    assert piped.bytes_per_s > 0
    assert min(piped.sender_cpu_s, piped.receiver_cpu_s) > 0


def test_a_process_has_used_time_and_memory() -> None:
    before = cpu_s(os.getpid())
    sum(range(1_000_000))
    assert cpu_s(os.getpid()) > before
    assert peak_bytes(os.getpid()) > 1 << 20


def test_the_time_of_a_thread_that_ended_counts() -> None:
    before = cpu_s(os.getpid())
    spun: list[float] = []

    def spin() -> None:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.05:
            pass
        spun.append(time.thread_time() - begun)

    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert cpu_s(os.getpid()) - before >= spun[0]


def test_a_family_is_a_process_and_its_children() -> None:
    assert family(os.getpid())[0] == os.getpid()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in family(os.getpid())


def moved(**compared: object) -> MigrateResult:
    result = MigrateResult(
        size=1 << 30,
        sealed_bytes_per_s=2e9,
        raw_pipe_bytes_per_s=4e9,
        ratio=0.5,
        mailbox_pages_per_s=12345.0,
        packets_bytes_per_s=3e8,
        sealed_runs=[1e9, 2e9, 3e9],
        raw_pipe_runs=[4e9, 4e9, 5e9],
        mailbox_runs=[1.0, 12345.0, 99999.0],
        packets_runs=[2e8, 3e8, 4e8],
        processors=2,
        sealed_cpu_s_per_byte=0.8e-9,
        raw_pipe_cpu_s_per_byte=0.5e-9,
        mailbox_cpu_s_per_page=250e-6,
    )
    return msgspec.structs.replace(result, **compared)


def test_runs_and_medians_are_shown_in_columns() -> None:
    lines = show_migration(moved()).splitlines()
    assert lines[0] == "1,024 MiB of random private memory over loopback TCP"
    assert lines[3].split() == ["raw", "pipe", "4.00", "GB/s", "4.00", "GB/s", "5.00", "GB/s", "4.00", "GB/s"]
    assert lines[5].split()[2:] == ["packets", "0.20", "GB/s", "0.30", "GB/s", "0.40", "GB/s", "0.30", "GB/s"]
    assert len({len(line) for line in lines[2:7]}) == 1
    assert "0.50 of the raw pipe" in lines[-4]
    assert lines[-2] == "Processor time: 0.80 s/GB by ring, 0.50 s/GB in the raw pipe, 250.0 us a page by mailbox."
    assert lines[-1] == "With 2 processors that allows at most 2.50 GB/s by ring and 8,000 pages/s by mailbox."


def test_a_comparison_with_qemu_is_shown_in_rows_of_its_own() -> None:
    rates = {"qemu_plain": 1e9, "qemu_tls": 0.25e9, "qemu_multifd_tls": 0.2e9}
    compared: dict[str, object] = {"channels": 2, "dirty_rate": 3 << 20}
    for name, rate in rates.items():
        compared |= {f"{name}_bytes_per_s": rate, f"{name}_ratio": 2e9 / rate, f"{name}_runs": [rate] * 3}
    lines = show_migration(moved(**compared)).splitlines()
    assert lines[0].endswith("over loopback TCP, 2 channels, while the guest writes up to 3.0 MiB/s by ring")
    assert lines[6].split() == ["QEMU,", "TLS", *["0.25", "GB/s"] * 4]
    assert [line.split()[0] for line in lines[-5:-3]] == ["8.00", "10.00"]
    assert lines[-6] == "It is 2.00 times as fast as QEMU in plaintext,"


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


def test_debugging_is_measured_beside_a_plain_guest() -> None:
    with scratch("bench") as place:
        result = measure_debug(place, 1 << 20, 1, lambda _: None)
    assert min(result.read_runs + result.plain_read_runs + result.dump_runs + result.plain_dump_runs) > 0
    assert result.dump_ratio == pytest.approx(result.dump_bytes_per_s / result.plain_dump_bytes_per_s)


def test_debugging_is_shown_in_rows() -> None:
    runs = ([1e8, 2e8], [1e9, 2e9], [6e8, 5e8], [1e9, 1e9])
    shown = show_debug(DebugResult(1 << 30, 65536, 1.5e8, 1.5e9, 5.5e8, 1e9, 0.55, *runs)).splitlines()
    assert shown[0] == "1,024 MiB of random memory, read by 64 KiB, and dumped to a file"
    assert shown[3].split() == ["reads,", "SEV", "0.10", "GB/s", "0.20", "GB/s", "0.15", "GB/s"]
    assert shown[-1] == "A decrypted dump reaches 0.55 of a plain guest's."


def test_idle_guests_are_shown_a_line_each() -> None:
    small = IdleGuest(64 << 20, 5.0, 0.0001, 0.0002, 50 << 20, 51 << 20, 0.0004, 0.0125, {"pause": 0.0125})
    shown = show_idle(IdleResult([small, msgspec.structs.replace(small, memory=8 << 30, round_s=0.0008)]))
    lines = shown.splitlines()
    assert lines[3].split()[:6] == ["64", "MiB", "0.1", "ms", "0.2", "ms"]
    assert lines[3].split()[-4:] == ["0.40", "ms", "12.5", "ms"]
    assert lines[4].split()[-4:-2] == ["0.80", "ms"]
    assert len({len(line) for line in lines[2:]}) == 1


def booted(**compared: object) -> BootResult:
    boot = Boot(2.0, "6.1.0", {"port reads": 10_000, "page-state changes": 643})
    result = BootResult("kvm", 1, 256 << 20, boot, 20e-6, 10e-6, 0.05, [2.0, 1.5, 3.0])
    return msgspec.structs.replace(result, **compared)


def test_an_idle_guest_is_moved_and_watched() -> None:
    said: list[str] = []
    with scratch("test") as place:
        (guest,) = measure_idle(place, said.append, sizes=[64 << 20], watch=Watch(span_s=0.1, hops=2)).guests
    assert said == [
        "launching and moving a guest of 64 MiB",
        "waiting until it rests",
        "watching it do nothing for 0.1 s",
    ]
    assert guest.downtime[DowntimePart.LAST_ROUND.value] == guest.round_s > 0
    assert guest.memory == 64 << 20
    assert guest.round_s < guest.downtime_s
    assert min(guest.source_vmm_peak_bytes, guest.target_vmm_peak_bytes) > 1 << 20


def test_a_boot_is_shown_with_its_exits() -> None:
    shown = show_boot(booted())
    lines = shown.splitlines()
    assert lines[0] == "Linux 6.1.0 with 1 vCPU and 256 MiB boots on engine kvm"
    assert lines[3].split() == ["to", "its", "init", "2.00", "s", "1.50", "s", "3.00", "s", "2.00", "s"]
    assert ["all", "exits", "10,643"] in [line.split() for line in lines]
    assert lines[-1] == "At an exchange each, the exits are 5.0% of the boot."


@pytest.mark.parametrize(("bound_s", "words"), [(2.5, "keeps within 2.50 s"), (1.9, "is over 1.90 s")])
def test_a_boot_is_compared_with_that_of_another_vmm(bound_s: float, words: str) -> None:
    shown = show_boot(booted(against_s=1.0, against_runs=[1.0, 1.0, 1.0], bound_s=bound_s))
    assert f"The boot {words}" in shown.splitlines()[-1]


def test_another_vmm_is_timed_until_it_prints_what_is_waited_for_and_then_ended() -> None:
    wait = "import time; print('up', flush=True); time.sleep(1000)"
    assert 0 < seconds_until([sys.executable, "-c", wait], "up") < 100


def test_another_vmms_clock_can_begin_where_ours_does() -> None:
    """Both texts may come at once; the one that ends it counts behind the one that begins it only."""
    command = [sys.executable, "-c", "import time; print('running, booted', flush=True); time.sleep(1000)"]
    assert 0 <= seconds_until(command, "booted", "running") < seconds_until(command, "booted")
    with pytest.raises(UserError, match="without printing 'up'"):
        seconds_until([sys.executable, "-c", "print('up, running')"], "up", "running")


def test_another_vmm_that_ends_without_a_word_is_no_measure() -> None:
    with pytest.raises(UserError, match="without printing 'up'; the last it printed is: down"):
        seconds_until([sys.executable, "-c", "print('down')"], "up")


def test_the_exits_of_a_guest_are_counted() -> None:
    with scratch("test") as place, port_guest(place, "auto") as guest:
        guest.access(100)
        assert guest.vcpus.exits == {wire.PortOut: 100, wire.Halt: 1}


def test_exits_are_measured_three_ways(sealift: Callable[..., Sealift]) -> None:
    bench = sealift("bench", "exits", "--exits", "100", "--runs", "2", "--json")
    assert bench.process.wait(100) == 0, bench.report()
    result = json.loads(bench.stdout.finish())
    assert result["ratio"] == pytest.approx(result["link_s"] / result["socket_s"])
    assert result["guest_s"] > result["link_s"] / 10
    assert len(result["socket_runs"]) == len(result["link_runs"]) == len(result["guest_runs"]) == 2


USED = (("sealed", "byte"), ("raw_pipe", "byte"), ("mailbox", "page"))


@pytest.mark.timeout(300)
def test_a_small_migration_is_measured_both_ways(sealift: Callable[..., Sealift]) -> None:
    bench = sealift("bench", "migrate", "--size", "2M", "--runs", "2", "--json")
    assert bench.process.wait(280) == 0
    result = json.loads(bench.stdout.finish())
    assert result["ratio"] == pytest.approx(result["sealed_bytes_per_s"] / result["raw_pipe_bytes_per_s"])
    assert len(result["sealed_runs"]) == len(result["raw_pipe_runs"]) == len(result["mailbox_runs"]) == 2
    assert result["mailbox_pages_per_s"] > 0
    assert min(result[f"{what}_cpu_s_per_{unit}"] for what, unit in USED) > 0


@pytest.mark.timeout(300)
def test_qemu_moves_the_same_memory_in_the_same_run(sealift: Callable[..., Sealift]) -> None:
    judges.program(PROGRAM, "qemu-system-x86")
    options = ["--size", "4M", "--runs", "1", "--channels", "2", "--dirty-rate", "1M"]
    bench = sealift("bench", "migrate", *options, "--against", "qemu", "--json")
    assert bench.process.wait(280) == 0, bench.report()
    result = json.loads(bench.stdout.finish())
    for way in ("qemu_plain", "qemu_tls", "qemu_multifd_tls"):
        rate = result[f"{way}_bytes_per_s"]
        assert rate > 0
        assert result[f"{way}_ratio"] == pytest.approx(result["sealed_bytes_per_s"] / rate)
    assert (result["channels"], result["dirty_rate"]) == (2, 1 << 20)


def test_a_comparison_with_a_qemu_that_is_not_there_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with scratch("test") as place, pytest.raises(UserError, match=f"{PROGRAM} is not installed"):
        measure_migration(place, Wanted(4 << 20, 1, against_qemu=True), say=lambda _: None)


def test_a_guest_is_watched_once_it_rests_and_one_that_never_does_is_an_error() -> None:
    used = iter([0.0, 0.5, 0.6, 0.6005, 9.9])
    looks: list[None] = []
    wait_for_rest(lambda: next(used), lambda: looks.append(None))
    assert len(looks) == 3
    busy = itertools.count()
    with pytest.raises(LostError, match="does not come to rest"):
        wait_for_rest(lambda: next(busy), lambda: None)
