"""The demonstration's verdict: a leak anywhere, or a search that is blind anywhere, is no success."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from sealift.cli.demo.needles import Needle
from sealift.cli.demo.places import RING_IN, RING_OUT, SHARED_PLANE, AddressSpace, Memfd, RecordedFile
from sealift.cli.demo.report import GuestReport, LaunchReport, MigrationReport, Report, SecrecyReport
from sealift.cli.demo.secrecy import Content, Hunt, Place, _search

SECRET = os.urandom(32).hex().encode()
MARKER = b"control-marker-of-this-test"
KINDS = ["heap", SHARED_PLANE, RING_OUT, RING_IN, "wire"]

VICTIM = f"""
import sys
from sealift.silicon.memory.plane import Plane
kind, content = sys.argv[1], bytes(byte ^ 0xFF for byte in bytes.fromhex(sys.argv[2]))
planes = {{name: Plane(name, 1 << 20) for name in {[SHARED_PLANE, RING_OUT, RING_IN]!r}}}
if kind in planes:
    planes[kind].data[5000 : 5000 + len(content)] = content
print("ready", flush=True)
sys.stdin.read()
"""
"""Holds `content` (given inverted, so that its arguments hold it not) on its heap, and in the memfd `kind`."""


@contextmanager
def place(kind: str, content: bytes, directory: Path) -> Iterator[Content]:
    """A place of that kind with `content` in it."""
    if kind == "wire":
        (directory / "wire").write_bytes(bytes(5000) + content)
        yield RecordedFile(directory / "wire")
        return
    hidden = bytes(byte ^ 0xFF for byte in content).hex()
    command = [sys.executable, "-c", VICTIM, kind, hidden]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield AddressSpace(process.pid) if kind == "heap" else Memfd(process.pid, kind)
        process.communicate()


def searched(kind: str, content: bytes, directory: Path) -> SecrecyReport:
    """What the search of one place finds."""
    with place(kind, content, directory) as found:
        return _search([Place(kind, found, Needle("marker", MARKER))], Hunt(SECRET, MARKER.decode(), bytes(16)), [])


def verdict(secrecy: SecrecyReport) -> bool:
    """`ok` of a demonstration in which everything else held."""
    return Report.of("unicorn", LAUNCH, MIGRATION, GUEST, secrecy).ok


LAUNCH = LaunchReport(measurement_verified=True, digest="d")
MIGRATION = MigrationReport("completed", "ring", 1, 1, 2, 3, 4, 5, 6)
GUEST = GuestReport("a", "a", "a", 10, 20, 5, chain_verified=True, faults=0)
CLEAN = SecrecyReport(["wire"], ["wire"], [], [], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_with_its_marker_and_no_secret_is_fine(kind: str, tmp_path: Path) -> None:
    report = searched(kind, MARKER, tmp_path)
    assert report.control_found == [kind]
    assert verdict(report)


@pytest.mark.parametrize("leak", [SECRET, bytes.fromhex(SECRET.decode())], ids=["text", "bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_leak_in_any_place_is_no_success(kind: str, leak: bytes, tmp_path: Path) -> None:
    report = searched(kind, MARKER + leak, tmp_path)
    assert report.control_found == [kind]
    assert report.found
    assert not verdict(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_finds_no_marker_is_no_success(kind: str, tmp_path: Path) -> None:
    report = searched(kind, b"nothing of interest", tmp_path)
    assert report.control_found == report.found == []
    assert not verdict(report)


def test_a_demonstration_that_searched_nowhere_is_no_success() -> None:
    assert verdict(CLEAN)
    assert not verdict(SecrecyReport([], [], [], [], 0))


@pytest.mark.parametrize(
    ("launch", "migration", "guest"),
    [
        (replace(LAUNCH, measurement_verified=False), MIGRATION, GUEST),
        (LAUNCH, replace(MIGRATION, status="failed"), GUEST),
        (LAUNCH, MIGRATION, replace(GUEST, faults=1)),
        (LAUNCH, MIGRATION, replace(GUEST, chain_verified=False)),
        (LAUNCH, MIGRATION, replace(GUEST, payload_sha256_target="b")),
        (LAUNCH, MIGRATION, replace(GUEST, payload_sha256_source="b")),
        (LAUNCH, MIGRATION, replace(GUEST, ledger_after=GUEST.ledger_before)),
        (LAUNCH, MIGRATION, replace(GUEST, ledger_before=0)),
    ],
)
def test_one_part_that_does_not_hold_is_no_success(
    launch: LaunchReport, migration: MigrationReport, guest: GuestReport
) -> None:
    assert not Report.of("unicorn", launch, migration, guest, CLEAN).ok
