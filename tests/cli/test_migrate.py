"""Moving guests between two hosts of one machine, as their users do."""

from __future__ import annotations

import json
import re
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


def source(sealift: Start, *options: str | Path) -> Sealift:
    process = sealift("run", "--name", "a", *options)
    process.stderr.wait_for("guest a runs")
    return process


def target(sealift: Start, host: Host, uri: str) -> tuple[Sealift, str]:
    """A host that waits for a guest, and where it really waits."""
    process = sealift("run", "--name", "b", "--host", host.path, "--incoming", uri)
    said = process.stderr.wait_until(
        lambda text: "waiting for a guest at" in text and text.endswith("\n"), "an address"
    )
    return process, said.rsplit(maxsplit=1)[-1]


def updates(console: str) -> list[int]:
    """How far vCPU 0's ledger is, line by line."""
    return [int(count) for count in re.findall(r"^ledger 0 (\d+) [0-9a-f]{64}$", console, re.MULTILINE)]


@pytest.mark.parametrize("transfer", ["ring", "mailbox"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_guest_moves_and_goes_on_where_it_was(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path, kind: str, transfer: str
) -> None:
    before = source(sealift, *LEDGER)
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/incoming"
    after, address = target(sealift, other_host, uri)
    before.stdout.wait_until(lambda text: len(updates(text)) > 3, "some progress")

    migration = sealift("migrate", "a", address, "--transfer", transfer, "--json")
    assert migration.wait() == 0
    result = json.loads(migration.stdout.text)
    assert result["status"] == "completed"
    assert result["ram"]["remaining"] == 0
    assert "round 1" in migration.stderr.text

    # The source's process is done; the target has the guest, which goes on counting.
    assert before.wait() == 0
    assert "has moved" in before.stderr.text
    after.stdout.wait_until(lambda text: len(updates(text)) > 3, "progress on the target")
    # One console, of which the first part was printed there and the rest here; the cut may fall within a line.
    console = before.stdout.text + after.stdout.text
    assert "FAULT" not in console
    counts = updates(console)
    assert counts == list(range(counts[0], counts[-1] + 1, 4))

    left = processes_naming(state_dir / "hosts" / "default")
    assert left == {}
    after.signal(signal.SIGINT)
    assert after.wait() == 0
    assert not (tmp_path / "incoming").exists()


def test_ctrl_c_gives_a_migration_up_and_the_guest_runs_on(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(range(256)) * 16384)
    guest = source(sealift, *LEDGER, "--payload", payload)
    waiting, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    run = state_dir / "hosts" / "default" / "run"
    with QmpClient(run, "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=SLOW)

    migration = sealift("migrate", "a", address)
    migration.stderr.wait_for("active")
    printed = len(guest.stdout.text)
    migration.signal(signal.SIGINT)
    assert migration.wait() == 1
    assert migration.stderr.text.splitlines()[-1] == "sealift: the migration was cancelled; guest a stays where it was"
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 3, "progress after the cancellation")

    # The target was told, and leaves nothing behind.
    assert waiting.wait() == 1
    assert "did not arrive" in waiting.stderr.text
    assert processes_naming(other_host.path) == {}

    # Another attempt succeeds.
    with QmpClient(run, "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=0)
    again, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    moved = sealift("migrate", "a", address)
    assert moved.wait() == 0
    assert f"guest a runs on {address} now" in moved.stdout.text
    again.stdout.wait_until(lambda text: len(updates(text)) > 3, "progress on the target")
    assert "FAULT" not in guest.stdout.text + again.stdout.text


def test_a_migration_to_nobody_fails_and_says_so(sealift: Start, tmp_path: Path) -> None:
    guest = source(sealift, *LEDGER)
    migration = sealift("migrate", "a", f"unix:{tmp_path}/nobody")
    assert migration.wait() == 1
    assert "nobody listens" in migration.stderr.text.splitlines()[-1]
    guest.stderr.wait_for("the migration of guest a failed")
    printed = len(guest.stdout.text)
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 1, "progress after the failure")


def test_a_paused_guest_arrives_paused_and_goes_on_when_told(sealift: Start, state_dir: Path, other_host: Host) -> None:
    guest = source(sealift, *LEDGER)
    after, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    with QmpClient(state_dir / "hosts" / "default" / "run", "a") as qmp:
        qmp.execute("stop")
    assert sealift("migrate", "a", address).wait() == 0
    guest.wait()
    after.stderr.wait_for("guest b is paused")
    with QmpClient(other_host.run, "b") as qmp:
        assert qmp.execute("query-status")["status"] == "paused"
        assert qmp.execute("query-migrate")["status"] == "completed"
        qmp.execute("cont")
    after.stdout.wait_until(lambda text: len(updates(text)) > 1, "progress")


def test_ctrl_c_ends_the_wait_for_a_guest_that_does_not_come(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path
) -> None:
    waiting, _ = target(sealift, other_host, f"unix:{tmp_path}/incoming")
    (listed,) = json.loads(_printed(sealift("ps", "--json", "--host", other_host.path)))
    assert (listed["name"], listed["state"]) == ("b", "inmigrate")
    waiting.signal(signal.SIGINT)
    assert waiting.wait() == 0
    assert not (tmp_path / "incoming").exists()
    assert processes_naming(state_dir) == {}
    assert list(other_host.run.iterdir()) == []


def _printed(process: Sealift) -> str:
    assert process.wait() == 0
    return process.stdout.text
