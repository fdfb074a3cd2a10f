"""Saving guests and running them again, as their users do."""

from __future__ import annotations

import json
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming
from sealift.cli.places import Host
from sealift.cli.qmp_client import QmpClient

LEDGER = ("--kernel", "ledger", "--memory", "16M", "--append", "ws=8 flip=2 every=4 burst=4 pause=5000")
SLOW = 64 * 1024  # bytes a second: the payload takes a minute

Start = Callable[..., Sealift]


def running(sealift: Start, name: str, *options: str | Path) -> Sealift:
    process = sealift("run", "--name", name, *options)
    process.stderr.wait_for(f"guest {name} runs")
    return process


def updates(console: str) -> list[int]:
    """How far vCPU 0's ledger is, line by line."""
    return [int(count) for count in re.findall(r"^ledger 0 (\d+) [0-9a-f]{64}$", console, re.MULTILINE)]


def progress(guest: Sealift, behind: int = 0) -> None:
    """The guest does something, without a fault."""
    guest.stdout.wait_until(lambda text: len(updates(text[behind:])) > 3, "progress")
    assert "FAULT" not in guest.stdout.text


@pytest.fixture
def run_directory(state_dir: Path) -> Path:
    return state_dir / "hosts" / "default" / "run"


def test_a_guest_is_saved_runs_on_and_is_run_twice_more(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path
) -> None:
    file = tmp_path / "a.snap"
    guest = running(sealift, "a", *LEDGER)
    progress(guest)
    saving = sealift("snapshot", "a", file)
    assert saving.wait() == 0
    assert re.match(
        rf"guest a is saved in {file}: [\d.]+ MiB in [\d.]+ s and \d rounds?, \d+ ms of downtime \(.*\)\n",
        saving.stdout.text,
    )
    guest.stderr.wait_for(f"guest a is saved in {file}")
    (listed,) = json.loads(printed(sealift("ps", "--json")))
    assert (listed["state"], listed["migration"]) == ("running", "snapshot completed")
    progress(guest, len(guest.stdout.text))
    at = max(updates(guest.stdout.text))

    assert printed(sealift("owner", "restores", "allowed")) == "allowed\n"
    here = running(sealift, "again", "--restore", file)
    there = running(sealift, "again", "--restore", file, "--host", other_host.path)
    for copy in (here, there):
        assert f"guest again is restored from {file}" in copy.stderr.text
        progress(copy)
        assert min(updates(copy.stdout.text)) <= at
    progress(guest, len(guest.stdout.text))
    assert sealift("migrate", "again", "unix:nowhere", "--no-check").wait() == 1
    (moved,) = json.loads(printed(sealift("history", "--json")))
    assert (moved["guest"], moved["status"]) == ("again", "failed")
    for process in (guest, here, there):
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert processes_naming(state_dir / "hosts") == {}
    assert list(tmp_path.glob(".a.snap*")) == []


def printed(process: Sealift) -> str:
    assert process.wait() == 0
    return process.stdout.text


def test_the_owner_says_no_and_the_reason_is_told(sealift: Start, state_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.snap"
    running(sealift, "a", *LEDGER)
    assert sealift("snapshot", "a", file).wait() == 0
    assert printed(sealift("owner", "restores")) == "refused\n", "as long as nobody said otherwise"
    refused = sealift("run", "--name", "b", "--restore", file)
    assert refused.wait() == 1
    last = refused.stderr.text.splitlines()[-1]
    assert last.startswith(f"sealift: the snapshot {file} cannot be restored: the owner lets no snapshot be restored")
    assert not any("b" in words for words in processes_naming(state_dir / "hosts").values())


def test_ctrl_c_leaves_no_file_and_the_guest_runs_on(sealift: Start, run_directory: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(range(256)) * 16384)
    directory = tmp_path / "snapshots"
    directory.mkdir()
    guest = running(sealift, "a", *LEDGER, "--payload", payload)
    with QmpClient(run_directory, "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=SLOW)
    saving = sealift("snapshot", "a", directory / "a.snap")
    saving.stderr.wait_for("active")
    assert len(list(directory.iterdir())) == 1
    saving.signal(signal.SIGINT)
    assert saving.wait() == 1
    assert saving.stderr.text.splitlines()[-1] == "sealift: guest a was not saved: the snapshot was cancelled"
    assert list(directory.iterdir()) == []
    progress(guest, len(guest.stdout.text))


def test_a_vmm_that_ends_meanwhile_leaves_no_file(sealift: Start, run_directory: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(range(256)) * 16384)
    directory = tmp_path / "snapshots"
    directory.mkdir()
    guest = running(sealift, "a", *LEDGER, "--payload", payload)
    with QmpClient(run_directory, "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=SLOW)
    saving = sealift("snapshot", "a", directory / "a.snap")
    saving.stderr.wait_for("active")
    guest.signal(signal.SIGINT)
    assert guest.wait() == 0
    assert saving.wait() == 1
    assert list(directory.iterdir()) == []


def test_a_file_that_finds_no_room_is_told_by_a_sentence(sealift: Start, run_directory: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the same error, but for its number."""
    directory = tmp_path / "snapshots"
    directory.mkdir()
    guest = running(sealift, "a", *LEDGER)
    with QmpClient(run_directory, "a") as qmp:
        pid = qmp.execute("x-sealift-query-processes")["pid"]
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (8192, before[1]))
    saving = sealift("snapshot", "a", directory / "a.snap")
    assert saving.wait() == 1
    said = saving.stderr.text.splitlines()[-1]
    assert said.startswith("sealift: guest a was not saved: the snapshot cannot be written to")
    assert said.endswith("File too large")
    assert list(directory.iterdir()) == []
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    progress(guest, len(guest.stdout.text))
    assert sealift("snapshot", "a", directory / "a.snap").wait() == 0


def test_a_file_is_not_overwritten(sealift: Start, tmp_path: Path) -> None:
    running(sealift, "a", *LEDGER)
    file = tmp_path / "a.snap"
    file.write_text("dear")
    saving = sealift("snapshot", "a", file)
    assert saving.wait() == 1
    assert "exists already; choose another name" in saving.stderr.text
    assert file.read_text() == "dear"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--incoming", "tcp:127.0.0.1:0"), "either by --incoming or by --restore"),
        (("--memory", "32M"), "--memory has no use with --restore: the guest that comes"),
    ],
)
@pytest.mark.usefixtures("state_dir")
def test_what_makes_no_sense_with_a_snapshot_is_wrong_usage(
    sealift: Start, options: tuple[str, ...], reason: str
) -> None:
    process = sealift("run", "--name", "a", "--restore", "x.snap", *options)
    assert process.wait() == 2
    assert reason in process.stderr.text


@pytest.mark.usefixtures("state_dir")
def test_a_snapshot_that_is_not_there_is_named(sealift: Start, tmp_path: Path) -> None:
    process = sealift("run", "--name", "a", "--restore", tmp_path / "missing.snap")
    assert process.wait() == 1
    assert process.stderr.text.splitlines()[-1].endswith("missing.snap cannot be read: No such file or directory")


def test_a_relative_path_is_the_users_not_the_vmms(
    sealift: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(sealift, "a", *LEDGER)
    monkeypatch.chdir(tmp_path)
    assert sealift("snapshot", "a", "here.snap").wait() == 0
    assert (tmp_path / "here.snap").exists()
