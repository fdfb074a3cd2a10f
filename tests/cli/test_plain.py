"""Guests that are not confidential, as their users run, move and save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift
from sealift.cli.places import Host

from .test_snapshot import LEDGER, progress, running, updates

Start = Callable[..., Sealift]


def test_a_plain_guest_is_saved_to_a_file_loaded_and_moved(
    sealift: Start, other_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guest = running(sealift, "a", "--type", "plain", *LEDGER)
    progress(guest)
    check = sealift("check", "a", f"file:{tmp_path}/a.qemu", "--json")
    assert check.wait() == 0
    saving = sealift("migrate", "a", f"file:{tmp_path}/a.qemu", "--json")
    assert saving.wait() == 0
    assert json.loads(saving.stdout.text)["status"] == "completed"
    assert guest.wait() == 0
    assert f"guest a is saved in file:{tmp_path}/a.qemu, and does not run here any more" in guest.stderr.text
    at = max(updates(guest.stdout.text))

    loaded = running(sealift, "b", "--incoming", f"file:{tmp_path}/a.qemu")
    progress(loaded)
    assert min(updates(loaded.stdout.text)) <= at + 8, "it goes on where it stopped, in the middle of a line perhaps"
    address = f"unix:{tmp_path}/here"
    there = sealift("run", "--name", "b", "--type", "plain", "--incoming", address, "--host", other_host.path)
    there.stderr.wait_for("waiting for a guest")
    assert sealift("migrate", "b", address).wait() == 0
    progress(there)


@pytest.mark.parametrize(
    "options",
    [
        ("--secret", "{file}"),
        ("--zero-pages",),
        ("--no-owner",),
        ("--policy", "nodbg"),
        ("--dh-cert-file", "{file}", "--session-file", "{file}"),
    ],
)
def test_what_is_said_of_an_owner_is_refused(sealift: Start, tmp_path: Path, options: tuple[str, ...]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    refused = sealift("run", "--type", "plain", *(option.format(file=file) for option in options))
    assert refused.wait() == 1
    assert f"{options[0]} has no use with --type plain" in refused.stderr.text


def test_a_confidential_guest_is_pointed_to_sealift_snapshot(sealift: Start, tmp_path: Path) -> None:
    guest = running(sealift, "a", *LEDGER)
    progress(guest)
    refused = sealift("migrate", "a", f"file:{tmp_path}/a.qemu")
    assert refused.wait() == 1
    assert "sealift snapshot" in refused.stderr.text
    assert list(tmp_path.glob("*.qemu")) == []
