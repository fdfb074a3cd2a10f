"""A migration's controls, as its user reaches them from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from harness import Sealift
from migration.certificates import Authority
from sealift.cli.places import Host

from .test_migrate import LEDGER, source, target, updates

Start = Callable[..., Sealift]


def test_a_guest_moves_by_tls_and_two_channels_when_its_user_says_go(
    sealift: Start, other_host: Host, tmp_path: Path
) -> None:
    authority = Authority()
    authority.issue(tmp_path / "ours", "client")
    authority.issue(tmp_path / "theirs", "server")
    before = source(sealift, *LEDGER)
    options = ("--name", "b", "--host", other_host.path, "--incoming", "tcp:127.0.0.1:0")
    after = sealift("run", *options, "--tls-creds", tmp_path / "theirs")
    address = after.stderr.wait_until(lambda text: "waiting for a guest at" in text and text.endswith("\n"), "address")
    uri = address.rsplit(maxsplit=1)[-1]

    plain = sealift("migrate", "a", uri, "--no-check")
    assert plain.wait() == 1
    assert "takes guests over TLS only" in plain.stderr.text

    for question in ("check", "plan"):
        plain = sealift(question, "a", uri)
        assert plain.wait() == 1
        assert "takes guests over TLS only" in plain.stdout.text + plain.stderr.text
        assert sealift(question, "a", uri, "--tls-creds", tmp_path / "ours").wait() == 0

    wishes = ("--tls-creds", tmp_path / "ours", "--multifd", "2", "--pause-before-switchover", "--json")
    migration = sealift("migrate", "a", uri, *wishes)
    migration.stderr.wait_for("pre-switchover")
    assert sealift("migrate", "a", "--continue").wait() == 0
    assert migration.wait() == 0, migration.report()
    assert json.loads(migration.stdout.text)["ram"]["multifd-bytes"] > 0
    after.stdout.wait_until(lambda text: len(updates(text)) > 3, "progress on the target")
    assert before.wait() == 0


def test_nothing_waits_to_be_continued(sealift: Start) -> None:
    source(sealift, *LEDGER)
    early = sealift("migrate", "a", "--continue")
    assert early.wait() != 0
    assert "Migration not in expected state: none" in early.stderr.text


def test_parameters_under_qemus_names_are_checked_before_anything_moves(sealift: Start, other_host: Host) -> None:
    source(sealift, *LEDGER)
    _, uri = target(sealift, other_host, "tcp:127.0.0.1:0")
    wrong = sealift("migrate", "a", uri, "--auto-converge", "--parameter", "cpu-throttle-initial=100")
    assert wrong.wait() != 0
    assert "cpu-throttle-initial 100 is out of range" in wrong.stderr.text
