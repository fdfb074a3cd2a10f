"""What the demonstration says is what it found, good or bad."""

from __future__ import annotations

import io

import msgspec

from sealift.cli.demo import words
from sealift.cli.demo.report import GuestReport, LaunchReport, MigrationReport, Report, SecrecyReport
from sealift.cli.demo.screen import Screen

DIGEST = "ab" * 32
LAUNCH = LaunchReport(measurement_verified=True, digest=DIGEST)
MIGRATION = MigrationReport("completed", "ring", 200, 20, 2, 1000, 9, 64000, 4_200_000)
GUEST = GuestReport(DIGEST, DIGEST, DIGEST, 500, 1000, 30, chain_verified=True, faults=0)
SECRECY = SecrecyReport(["wire", "source_vmm"], ["wire", "source_vmm"], [], ["target_ring_out"], 3_000_000)


def report(launch: LaunchReport, migration: MigrationReport, guest: GuestReport, secrecy: SecrecyReport) -> Report:
    return Report.of("unicorn", launch, migration, guest, secrecy)


def test_a_report_is_good_only_if_every_part_is() -> None:
    change = msgspec.structs.replace
    assert report(LAUNCH, MIGRATION, GUEST, SECRECY).ok
    for guest in (
        change(GUEST, faults=1),
        change(GUEST, ledger_after=500),
        change(GUEST, chain_verified=False),
        change(GUEST, payload_sha256_target="cd" * 32),
    ):
        assert not report(LAUNCH, MIGRATION, guest, SECRECY).ok
        assert not words.went_on(guest).ok
    for secrecy in (
        change(SECRECY, found=["wire: text at 0x10"]),
        change(SECRECY, control_found=["wire"]),
        change(SECRECY, searched=[], control_found=[]),
    ):
        assert not report(LAUNCH, MIGRATION, GUEST, secrecy).ok
    assert not report(change(LAUNCH, measurement_verified=False), MIGRATION, GUEST, SECRECY).ok
    assert not report(LAUNCH, change(MIGRATION, status="failed"), GUEST, SECRECY).ok


def test_a_leak_is_named_where_it_was_found() -> None:
    leaky = msgspec.structs.replace(SECRECY, found=["wire: first half of the secret (text) at 0x10"])
    assert words.searched(leaky).meaning == leaky.found[0]
    assert words.search_rows(leaky)[0] == ("wire", "found", "FOUND")
    assert words.search_rows(leaky)[1] == ("source_vmm", "found", "not found")


def test_steps_are_plain_lines_where_nobody_watches() -> None:
    out = io.StringIO()
    screen = Screen(out)
    with screen.step("Secret", "Searching …") as step:
        step.progress("half of it")
        step.outcome = words.searched(SECRECY)
    screen.table(("place", "control marker", "secret"), words.search_rows(SECRECY))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("  ✓ Secret     not found in 3.0 MB in 2 places, control markers in all 2")
    assert all(line == line.rstrip() and "\x1b" not in line and len(line) <= 110 for line in lines)
    assert lines[-1].split()[0] == "target_ring_out"
