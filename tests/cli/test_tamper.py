"""``sealift tamper``: a network to be distrusted, from the command line."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift
from sealift.cli.places import Host
from sealift.tamper.messages import KINDS
from sealift.tamper.rules import Verb

from .test_migrate import LEDGER, source, target, updates


def address_in(process: Sealift) -> str:
    """Where it listens, as it says."""
    found = re.search(r"tampering at (\S+),", process.stderr.wait_for("with seed"))
    assert found is not None
    return found[1]


def test_a_guest_is_moved_and_what_was_done_is_logged(
    sealift: Callable[..., Sealift], other_host: Host, tmp_path: Path
) -> None:
    guest = source(sealift, *LEDGER)
    guest.stdout.wait_until(lambda text: len(updates(text)) > 3, "some progress")
    _, address = target(sealift, other_host, f"unix:{tmp_path}/target")
    tamper = sealift(
        *("tamper", "--listen", "tcp:127.0.0.1:0", "--to", address, "--seed", "7", "--once", "--json"),
        *("--rule", "flip:record", "--rule", "drop:final#2"),
    )
    moving = sealift("migrate", "a", address_in(tamper))
    assert moving.wait() == 1
    assert "not authentic" in moving.stderr.text
    assert tamper.wait() == 1, "a rule that met no message"
    *entries, summary = map(json.loads, tamper.stdout.text.splitlines())
    events = [entry["event"] for entry in entries]
    assert events == ["connected", "ended", "connected", "tampered", "ended"], "the inquiry before it comes by as well"
    assert (entries[3]["message"], entries[3]["rule"]) == ("record", "flip:record")
    assert summary["seed"] == 7
    assert summary["rules"] == [{"rule": "flip:record", "times": 1}, {"rule": "drop:final#2", "times": 0}]
    seen = len(updates(guest.stdout.text))
    guest.stdout.wait_until(lambda text: len(updates(text)) > seen, "progress after the attack")
    assert "FAULT" not in guest.stdout.text


def test_ctrl_c_ends_it_with_a_summary_and_no_connection_stays(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        to = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
        tamper = sealift(
            "tamper",
            "--listen",
            f"unix:{tmp_path / 'way'}",
            "--to",
            to,
            "--rule",
            "delay:front=3600s",
            "--seed",
            "3",
        )
        address_in(tamper)
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(str(tmp_path / "way"))
            taken, _ = listening.accept()
            with taken:
                source.sendall(bytes.fromhex("5145564d00000003070000000973") + b"ealift-1")
                tamper.stdout.wait_for("waits 3600 s")
                tamper.signal(signal.SIGINT)
                assert tamper.wait() == 0
                assert source.recv(1) == b""
    assert tamper.stdout.text.splitlines()[-2:] == [
        "1 connection, 1 message, 0 bytes, seed 3",
        "  delay:front=3600s: done once",
    ]
    assert not (tmp_path / "way").exists()


def test_nobody_behind_it_is_said(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    tamper = sealift("tamper", "--listen", f"unix:{tmp_path / 'way'}", "--to", f"unix:{tmp_path / 'nobody'}")
    address_in(tamper)
    with socket.socket(socket.AF_UNIX) as source:
        source.connect(str(tmp_path / "way"))
        assert source.recv(1) == b""
    tamper.stdout.wait_for("it leads nowhere: nobody listens on")


def test_help_lists_every_message_and_every_verb(sealift: Callable[..., Sealift]) -> None:
    helping = sealift("tamper", "--help")
    assert helping.wait() == 0
    for word in [*KINDS, *(verb.value for verb in Verb)]:
        assert re.search(rf"^  {word} ", helping.stdout.text, re.MULTILINE), word


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--listen", "unix:/tmp/x"], 2, "--to"),
        (["--listen", "unix:/tmp/x", "--to", "pigeon"], 1, "no migration address"),
        (["--listen", "fd:7", "--to", "unix:/tmp/x"], 1, "between sockets"),
        (["--listen", "unix:/tmp/x", "--to", "unix:/tmp/y", "--rule", "drop:fianl"], 1, "did you mean final?"),
        (["--listen", "tcp:192.0.2.1:4444", "--to", "unix:/tmp/y"], 1, "cannot listen"),
    ],
)
def test_mistakes_are_sentences(
    sealift: Callable[..., Sealift], arguments: list[str], status: int, reason: str
) -> None:
    process = sealift("tamper", *arguments)
    assert process.wait() == status
    assert reason in process.stderr.text
    assert "Traceback" not in process.stderr.text
