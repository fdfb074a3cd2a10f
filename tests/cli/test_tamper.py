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
from sealift.tamper.messages import KINDS
from sealift.tamper.rules import Verb
from sealift.wire.qemu_stream import encode_front

FRONT = encode_front()


def address_in(process: Sealift) -> str:
    """Where it listens, as it says."""
    found = re.search(r"tampering at (\S+),", process.stderr.wait_for("with seed"))
    assert found is not None
    return found[1]


def test_what_is_done_is_logged_in_json_and_once_ends_it(sealift: Callable[..., Sealift]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        tamper = sealift(
            *("tamper", "--listen", "tcp:127.0.0.1:0", "--to", f"tcp:127.0.0.1:{listening.getsockname()[1]}"),
            *("--rule", "flip:front@bit=9", "--rule", "drop:final", "--seed", "7", "--once", "--json"),
        )
        port = int(address_in(tamper).rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as source:
            taken, _ = listening.accept()
            with taken:
                source.sendall(FRONT)
                source.shutdown(socket.SHUT_WR)
                assert taken.makefile("rb").read() == FRONT[:1] + bytes([FRONT[1] ^ 2]) + FRONT[2:]
    assert tamper.wait() == 1, "a rule was not carried out"
    *entries, summary = map(json.loads, tamper.stdout.text.splitlines())
    assert [entry.pop("event") for entry in entries] == ["connected", "tampered", "ended"]
    assert entries[1].pop("time_s") >= entries[0]["time_s"]
    assert entries[1] == {
        "connection": 1,
        "side": "source",
        "message": "front",
        "number": 1,
        "length": 22,
        "rule": "flip:front@bit=9",
        "words": "bit 9 flipped",
    }
    assert summary == {
        "seed": 7,
        "connections": 1,
        "messages": 1,
        "bytes": 22,
        "rules": [{"rule": "flip:front@bit=9", "times": 1}, {"rule": "drop:final", "times": 0}],
    }


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
                source.sendall(FRONT)
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
