"""An owner at a socket and its rules, as users have them: real hosts, guests and migrations."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift
from sealift.cli.places import Host, default_manufacturer, default_owner
from sealift.silicon.processor.manufacturer import Manufacturer

from .test_migrate import LEDGER, target, updates

Start = Callable[..., Sealift]

pytestmark = pytest.mark.usefixtures("state_dir")


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The directory of an owner that is not the user's own."""
    return tmp_path / "far"


def serve(sealift: Start, far: Path, uri: str, *options: str | Path) -> tuple[Sealift, str]:
    """An owner that serves, and where it really does."""
    root = Manufacturer(default_manufacturer()).ark.fingerprint().hex()
    process = sealift("owner", "serve", "--listen", uri, "--owner", far, "--trust", root, *options)
    said = process.stderr.wait_until(lambda text: "answers at" in text and text.endswith("\n"), "an address")
    return process, said.rsplit(maxsplit=1)[-1]


def asked(sealift: Start, *words: str | Path, status: int = 0) -> str:
    """What a command that ends prints."""
    process = sealift(*words)
    assert process.wait() == status, process.report()
    return process.stdout.text


def decisions(sealift: Start, owner: Path) -> list[tuple[str, str]]:
    """The owner's log: outcomes, and of what."""
    lines = asked(sealift, "owner", "log", "--json", "--owner", owner).splitlines()
    return [(entry["outcome"], entry["what"]) for entry in map(json.loads, lines)]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_guest_is_launched_and_moved_at_the_word_of_an_owner_elsewhere(
    sealift: Start, other_host: Host, far: Path, tmp_path: Path, kind: str
) -> None:
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/owner.sock"
    planted = tmp_path / "secret"
    planted.write_text("for the guest alone")
    owner, where = serve(sealift, far, uri, *LEDGER, "--secret", planted)
    before = sealift("run", "--name", "a", "--owner", where, *LEDGER)
    before.stdout.wait_until(lambda text: len(updates(text)) > 1, "some progress")
    after = sealift("run", "--name", "b", "--host", other_host.path, "--owner", where, "--incoming", "tcp:127.0.0.1:0")
    address = after.stderr.wait_until(lambda text: "waiting" in text and text.endswith("\n"), "an address").split()[-1]
    asked(sealift, "migrate", "a", address)
    assert before.wait() == 0
    after.stdout.wait_until(lambda text: len(updates(text)) > 1, "progress on the target")
    assert "FAULT" not in before.stdout.text + after.stdout.text
    assert decisions(sealift, far) == [
        ("began", "a launch"),
        ("released", "a secret"),
        ("began", "a receiver"),
        ("released", "a secret"),
    ]
    assert not default_owner().exists()  # the local one had no part in it
    owner.signal(signal.SIGINT)
    assert owner.wait() == 0
    assert not (tmp_path / "owner.sock").exists()


def test_another_guest_than_the_owners_gets_nothing(sealift: Start, far: Path) -> None:
    _, where = serve(sealift, far, "tcp:127.0.0.1:0", "--kernel", "idle", "--memory", "16M")
    guest = sealift("run", "--name", "a", "--owner", where, *LEDGER)
    assert guest.wait() == 1
    assert "is not what it must be: its measurement differs" in guest.stderr.text
    assert decisions(sealift, far)[-1] == ("refused", "a secret")


def test_the_policy_is_the_owners(sealift: Start, far: Path) -> None:
    _, where = serve(sealift, far, "tcp:127.0.0.1:0", *LEDGER, "--policy", "nodbg,es")
    guest = sealift("run", "--name", "a", "--owner", where, *LEDGER)
    assert guest.wait() == 1
    assert "say --policy nodbg,es" in guest.stderr.text


@pytest.mark.parametrize("way", [("--kernel", "idle"), ("--incoming", "tcp:127.0.0.1:0")])
def test_without_its_owner_nothing_begins(sealift: Start, way: tuple[str, ...]) -> None:
    guest = sealift("run", "--name", "a", "--owner", "tcp:127.0.0.1:1", *way)
    assert guest.wait() == 1
    assert "sealift: no owner answers at tcp:127.0.0.1:1, and nothing goes on without its word" in guest.stderr.text


def test_a_secret_is_the_owners_to_plant(sealift: Start, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    guest = sealift("run", "--owner", "tcp:127.0.0.1:1", "--secret", tmp_path / "secret")
    assert guest.wait() == 1
    assert "are the owner's to give; give them to the one that serves at tcp:127.0.0.1:1" in guest.stderr.text


def test_an_owner_that_trusts_no_root_does_not_serve(sealift: Start, far: Path) -> None:
    process = sealift("owner", "serve", "--listen", "tcp:127.0.0.1:0", "--owner", far)
    assert process.wait() == 1
    assert "this owner trusts no root" in process.stderr.text


def test_a_guest_whose_owner_is_gone_cannot_move_and_runs_on(sealift: Start, other_host: Host, far: Path) -> None:
    owner, where = serve(sealift, far, "tcp:127.0.0.1:0", *LEDGER)
    before = sealift("run", "--name", "a", "--owner", where, *LEDGER)
    before.stdout.wait_until(lambda text: len(updates(text)) > 1, "some progress")
    after = sealift("run", "--name", "b", "--host", other_host.path, "--owner", where, "--incoming", "tcp:127.0.0.1:0")
    address = after.stderr.wait_until(lambda text: "waiting" in text and text.endswith("\n"), "an address").split()[-1]
    owner.signal(signal.SIGTERM)
    assert owner.wait() == 0
    migration = sealift("migrate", "a", address)
    assert migration.wait() == 1
    assert f"no owner answers at {where}" in migration.stderr.text
    count = len(updates(before.stdout.text))
    before.stdout.wait_until(lambda text: len(updates(text)) > count + 1, "progress at home")

    # The target waits on; once the owner is back, the guest comes.
    serve(sealift, far, where, "--receivers-only")
    asked(sealift, "migrate", "a", address)
    after.stdout.wait_until(lambda text: len(updates(text)) > 1, "progress on the target")


def test_a_receipt_comes_with_a_migration_and_its_owner_believes_it(
    sealift: Start, other_host: Host, tmp_path: Path
) -> None:
    before = sealift("run", "--name", "a", *LEDGER)
    before.stderr.wait_for("guest a runs")
    _, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    file = tmp_path / "moved.json"
    result = json.loads(asked(sealift, "migrate", "a", address, "--json", "--receipt", file))
    assert set(result["x-sealift-receipt"]) >= {"source", "target"}
    said = asked(sealift, "owner", "receipt", file)
    assert "OK: the handlers of both launches state this" in said
    assert f"moved      {result['x-sealift-pages']['private-pages']} private pages in" in said
    assert f"a to {address}, ended 20" in said

    altered = file.read_text().replace('"pages": ', '"pages": 1')
    file.write_text(altered)
    refused = sealift("owner", "receipt", file)
    assert refused.wait() == 1
    assert "the receipt proves nothing: the source's half is not authentic" in refused.stderr.text
    again = sealift("migrate", "a", address, "--receipt", file)
    assert again.wait() == 1
    assert "exists already" in again.stderr.text


def test_method_psp_makes_no_receipt(sealift: Start, tmp_path: Path) -> None:
    migration = sealift("migrate", "a", "tcp:127.0.0.1:1", "--method", "psp", "--receipt", tmp_path / "moved.json")
    assert migration.wait() == 2
    assert "method psp makes no receipt" in migration.stderr.text


def test_a_host_receives_only_while_it_is_approved(sealift: Start, other_host: Host, tmp_path: Path) -> None:
    """With the local owner: revoked for all, approved by its certificates, revoked by its name for one guest."""
    certificates = tmp_path / "other.cert"
    asked(sealift, "platform", "export", "--full", certificates, "--host", other_host.path)
    before = sealift("run", "--name", "a", *LEDGER)
    before.stderr.wait_for("guest a runs")
    asked(sealift, "owner", "revoke", "any")
    after, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    refused = sealift("migrate", "a", address)
    assert refused.wait() == 1
    assert "the owner has revoked any host that is not approved by name" in refused.stderr.text

    asked(sealift, "owner", "approve", certificates)
    guest = json.loads(asked(sealift, "owner", "log", "--json", "--refused").splitlines()[-1])["guest"]
    asked(sealift, "owner", "revoke", certificates, "--guest", guest)
    again = sealift("migrate", "a", address)
    assert again.wait() == 1
    assert "for this guest" in again.stderr.text
    log = asked(sealift, "owner", "log", "--refused").splitlines()
    assert len(log) == 2
    assert all("may not receive the guest: the owner has revoked" in line for line in log)

    asked(sealift, "owner", "approve", certificates, "--guest", guest)
    asked(sealift, "migrate", "a", address)
    assert before.wait() == 0
    after.stdout.wait_until(lambda text: len(updates(text)) > 1, "progress on the target")
    rules = json.loads(asked(sealift, "owner", "list", "--json"))
    assert [(rule["rule"], rule["hosts"], rule["guest"]) for rule in rules] == [
        ("approved", "host", guest),
        ("approved", "host", "every"),
        ("revoked", "any", "every"),
    ]
