"""The demonstration as its users run it: what it reports, and that it leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming, wait_for_end_of
from usable_kvm import why_not

LIMIT_S = 280
"""For the whole of it: an emulated guest is slow where several tests share two cores."""

PLACES = {
    "source_vmm",
    "target_vmm",
    "source_shared_plane",
    "target_shared_plane",
    "source_ring_out",
    "source_ring_in",
    "target_ring_in",
    "wire",
    "wire_back",
}


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes make their temporary files."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def assert_nothing_is_left(scratch: Path) -> None:
    """No process, no file."""
    wait_for_end_of(list(processes_naming(scratch)))
    assert not list(scratch.iterdir())


@pytest.mark.timeout(LIMIT_S + 40)
@pytest.mark.parametrize(
    ("options", "transfer"),
    [(["--transfer", "ring"], "ring"), (["--transfer", "mailbox"], "mailbox"), (["--method", "psp"], "packets")],
)
def test_everything_holds_whatever_carries_the_pages(
    options: list[str], transfer: str, scratch: Path, tmp_path: Path, sealift: Callable[..., Sealift]
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"line\n" * 3333)
    demo = sealift("demo", "--json", "--memory", "32M", "--payload", payload, *options)
    assert demo.process.wait(LIMIT_S) == 0
    report = json.loads(demo.stdout.finish().splitlines()[-1])
    digest = hashlib.sha256(payload.read_bytes()).hexdigest()
    assert report["ok"] is True
    assert report["engine"] == ("unicorn" if why_not() else "kvm")
    assert report["launch"]["measurement_verified"] is True
    assert report["migration"]["status"] == "completed"
    assert report["migration"]["transfer"] == transfer
    assert report["migration"]["private_pages"] > 256
    assert report["migration"]["hole_pages"] > 4096
    assert report["guest"]["payload_sha256_source"] == report["guest"]["payload_sha256_target"] == digest
    assert report["guest"]["ledger_after"] > report["guest"]["ledger_before"] > 0
    assert report["guest"]["faults"] == 0
    assert set(report["secrecy"]["searched"]) == set(report["secrecy"]["control_found"]) == PLACES
    assert report["secrecy"]["found"] == []
    assert report["secrecy"]["empty"] == ["target_ring_out"]
    assert_nothing_is_left(scratch)


@pytest.mark.timeout(LIMIT_S + 40)
def test_everything_holds_for_a_guest_that_hides_its_registers(scratch: Path, sealift: Callable[..., Sealift]) -> None:
    demo = sealift("demo", "--json", "--memory", "32M", "--policy", "es,nodbg,nosend")
    assert demo.process.wait(LIMIT_S) == 0
    report = json.loads(demo.stdout.finish().splitlines()[-1])
    assert report["ok"] is True
    assert report["engine"] == "unicorn"
    assert report["launch"]["measurement_verified"] is True
    assert report["migration"]["status"] == "completed"
    assert report["guest"]["faults"] == 0
    assert_nothing_is_left(scratch)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_guest_outlives_a_demonstration_that_is_broken_off(
    number: signal.Signals, scratch: Path, sealift: Callable[..., Sealift]
) -> None:
    """SIGKILL leaves files, since nobody is left to remove them, but no process."""
    demo = sealift("demo", "--memory", "32M")
    demo.stdout.wait_for("Launched")
    guests = list(processes_naming(scratch))
    assert len(guests) >= 2
    demo.signal(number)
    demo.wait()
    wait_for_end_of(guests)
    if number is not signal.SIGKILL:
        assert demo.process.returncode == 130
        assert demo.stderr.text.strip() == "sealift: interrupted"
        assert_nothing_is_left(scratch)


def test_a_demonstration_that_cannot_be_played_says_why(
    scratch: Path, tmp_path: Path, sealift: Callable[..., Sealift]
) -> None:
    demo = sealift("demo", "--json", "--payload", tmp_path / "missing")
    assert demo.wait() == 1
    report = json.loads(demo.stdout.text)
    assert report["ok"] is False
    assert "missing" in report["error"]
    assert "missing" in demo.stderr.text
    assert_nothing_is_left(scratch)


def test_a_vmm_that_cannot_launch_is_quoted(scratch: Path, tmp_path: Path, sealift: Callable[..., Sealift]) -> None:
    payload = tmp_path / "large"
    payload.write_bytes(bytes(30 << 20))
    demo = sealift("demo", "--memory", "16M", "--payload", payload)
    assert demo.wait() == 1
    assert "do not fit" in demo.stderr.text
    assert_nothing_is_left(scratch)


def test_linux_takes_no_payload(sealift: Callable[..., Sealift]) -> None:
    demo = sealift("demo", "--linux", "--payload", "README.md")
    assert demo.wait() == 2
    assert "--payload is for the built-in guest" in demo.stderr.text
