"""Moving guests between two hosts of one machine, as their users do."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming, wait_for_end_of
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


@pytest.mark.parametrize(
    "how", [("--transfer", "ring"), ("--transfer", "mailbox"), ("--method", "psp", "--packet-pages", "16")]
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_guest_moves_and_goes_on_where_it_was(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path, kind: str, how: tuple[str, ...]
) -> None:
    before = source(sealift, *LEDGER, "--policy", "nodbg,sev")
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/incoming"
    after, address = target(sealift, other_host, uri)
    before.stdout.wait_until(lambda text: len(updates(text)) > 3, "some progress")

    migration = sealift("migrate", "a", address, *how, "--json")
    assert migration.wait() == 0
    result = json.loads(migration.stdout.text)
    assert result["status"] == "completed"
    assert result["ram"]["remaining"] == 0
    assert re.search(r"round \d", migration.stderr.text)  # a short first round may pass between two looks

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
    assert migration.stderr.text.splitlines()[-1] == "sealift: guest a was not moved: the migration was cancelled"
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
    migration = sealift("migrate", "a", f"unix:{tmp_path}/nobody", "--no-check")
    assert migration.wait() == 1
    last = migration.stderr.text.splitlines()[-1]
    assert last.endswith("start the target first")
    assert "nobody listens" in last
    assert "[Errno" not in migration.stderr.text
    guest.stderr.wait_for("the migration of guest a failed")
    printed = len(guest.stdout.text)
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 1, "progress after the failure")


def test_a_policy_that_forbids_method_psp_is_named(sealift: Start) -> None:
    """NOSEND is in the default policy."""
    guest = source(sealift, *LEDGER)
    migration = sealift("migrate", "a", "tcp:127.0.0.1:1", "--method", "psp")
    assert migration.wait() != 0
    assert migration.stderr.text == (
        "sealift: guest a cannot be moved to tcp:127.0.0.1:1: its policy has NOSEND, which forbids its secure "
        "processor to send it; launch it without nosend (policy-nosend); and nobody listens on tcp:127.0.0.1:1; start "
        "the target first (target-unreachable)\n"
    )
    guest.signal(signal.SIGINT)
    assert guest.wait() == 0


def test_what_is_in_the_way_is_said_before_a_migration_begins(sealift: Start, tmp_path: Path) -> None:
    guest = source(sealift, *LEDGER)
    migration = sealift("migrate", "a", f"unix:{tmp_path}/nobody")
    assert migration.wait() == 1
    assert migration.stderr.text.endswith("start the target first (target-unreachable)\n")
    assert "is being moved" not in guest.stderr.text


def test_what_a_migration_was_given_does_not_stick_to_its_guest(
    sealift: Start, state_dir: Path, tmp_path: Path
) -> None:
    source(sealift, *LEDGER, "--downtime-limit", "123")
    with QmpClient(state_dir / "hosts" / "default" / "run", "a") as qmp:
        before = qmp.execute("query-migrate-parameters")
        options = ("--transfer", "mailbox", "--downtime-limit", "7")
        assert sealift("migrate", "a", f"unix:{tmp_path}/nobody", *options).wait() == 1
        assert qmp.execute("query-migrate-parameters") == before
    assert (before["downtime-limit"], before["x-sealift-transfer"]) == (123, "ring")


def test_a_guest_that_waits_for_no_token_takes_none(sealift: Start, tmp_path: Path) -> None:
    guest = source(sealift, *LEDGER)
    token = tmp_path / "token"
    token.write_bytes(bytes(116))
    settling = sealift("token", "import", "a", token)
    assert settling.wait() == 1
    assert "waits for no token" in settling.stderr.text
    assert sealift("token", "import", "a", tmp_path / "missing").wait() == 1
    printed = len(guest.stdout.text)
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 1, "progress")


def underway(sealift: Start, state_dir: Path, host: Host, tmp_path: Path) -> tuple[Sealift, Sealift, Sealift]:
    """A migration that takes a minute: source, target, and who watches."""
    payload = tmp_path / "payload"
    payload.write_bytes(bytes(range(256)) * 16384)
    guest = source(sealift, *LEDGER, "--payload", payload)
    waiting, address = target(sealift, host, "tcp:127.0.0.1:0")
    with QmpClient(state_dir / "hosts" / "default" / "run", "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=SLOW)
    migration = sealift("migrate", "a", address)
    migration.stderr.wait_for("active")
    return guest, waiting, migration


def test_a_target_that_is_killed_leaves_no_platform_and_the_guest_runs_on(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path
) -> None:
    guest, waiting, migration = underway(sealift, state_dir, other_host, tmp_path)
    children = list(processes_naming(other_host.path))
    printed = len(guest.stdout.text)
    waiting.signal(signal.SIGKILL)
    assert migration.wait() == 1
    assert "guest a was not moved" in migration.stderr.text.splitlines()[-1]
    wait_for_end_of(children)
    assert processes_naming(other_host.path) == {}
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 3, "progress after the target's end")
    assert "FAULT" not in guest.stdout.text
    target(sealift, other_host, "tcp:127.0.0.1:0")  # its name is free


def test_a_source_that_is_killed_takes_the_guest_along_and_leaves_no_platform_on_either_host(
    sealift: Start, state_dir: Path, other_host: Host, tmp_path: Path
) -> None:
    guest, waiting, migration = underway(sealift, state_dir, other_host, tmp_path)
    children = list(processes_naming(state_dir / "hosts"))
    assert len(children) >= 3  # two VMMs name them, and two platforms; the target names its host
    guest.signal(signal.SIGKILL)
    assert migration.wait() == 1
    assert "the VMM of a has ended" in migration.stderr.text
    assert waiting.wait() == 1
    assert "did not arrive" in waiting.stderr.text
    wait_for_end_of(children)
    assert processes_naming(state_dir / "hosts") == {}
    assert list(other_host.run.iterdir()) == []
    source(sealift, *LEDGER)  # its name is free


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
