"""What the steps' outcomes are called: facts, and what each means."""

from __future__ import annotations

from typing import Final

from sealift.cli.demo.report import GuestReport, LaunchReport, LinuxGuestReport, MigrationReport, Report, SecrecyReport
from sealift.cli.demo.screen import Outcome
from sealift.vmm.migration.stats import MigrationInfo

HEADING: Final = "A confidential guest moves from host-a to host-b, alive and unseen"

NEXT: Final = (
    ("sealift demo --transfer mailbox", "the same through the RFC's mailbox, one page a request"),
    ("sealift demo --method psp", "the same from one secure processor to the other"),
    ("sealift demo --policy es", "the same with a guest whose registers are hidden too"),
    ("sealift demo --payload FILE --json", "with a file of your own inside, and a report for programs"),
    ("make demo-linux", "the same with an unmodified Linux on KVM"),
    ("sealift run --name one", "a guest of your own; then sealift ps, console, migrate"),
    ("sealift bench migrate --size 1G", "how fast this machine moves sealed memory"),
)


def launched(report: LaunchReport, memory: int, vcpus: int) -> Outcome:
    """After the launch."""
    if not report.measurement_verified:
        return Outcome(ok=False, headline="the owner released a secret for another launch digest", meaning="")
    return Outcome(
        ok=True,
        headline=f"{memory >> 20:,} MiB and {vcpus} vCPUs on host-a, launch digest {_short(report.digest)}",
        meaning="The owner computed that digest from its own files. The platform proved that it had measured the "
        "same, and only then the owner released the guest's secret.",
    )


def payload(expected: str, printed: str, size: int) -> Outcome:
    """After the guest's first look at its payload."""
    return Outcome(
        ok=printed == expected,
        headline=f"{size:,} bytes, SHA-256 {_short(printed)}, says the guest",
        meaning="The same as hashlib says of the file: it arrived inside, whole."
        if printed == expected
        else f"hashlib says {_short(expected)} of the file.",
    )


def counting(updates: tuple[int, ...], working_set: int) -> Outcome:
    """After the working sets were filled."""
    return Outcome(
        ok=True,
        headline=f"{_sum(updates)} pages verified and overwritten, each with the secret in it",
        meaning=f"Each vCPU walks {working_set:,} private pages, folds what it finds into a hash chain, and flips "
        "others between private and shared.",
    )


def booted(kernel: str, encryption: str, vcpus: int) -> Outcome:
    """After Linux has booted."""
    return Outcome(
        ok="AMD SEV" in encryption,
        headline=f"Linux {kernel} on {_many(vcpus, 'vCPU')}",
        meaning=f"Its own words: {encryption or 'none about memory encryption'}.",
    )


def watching(counter: int, disk: int, working_set: int) -> Outcome:
    """After Linux's program has filled its working sets."""
    return Outcome(
        ok=True,
        headline=f"{counter:,} pages and {disk:,} disk blocks verified and overwritten, the secret in every page",
        meaning=f"On each vCPU a process walks {working_set:,} pages; another one writes and verifies a virtio disk; "
        "all of them watch that no clock goes back.",
    )


def progress(info: MigrationInfo) -> str:
    """While the guest moves."""
    moving = "Moving the running guest to host-b …"
    if info.x_sealift_pages is None or info.ram is None:
        return moving
    pages = info.x_sealift_pages.private_pages + info.x_sealift_pages.shared_pages
    return f"{moving}  round {info.ram.dirty_sync_count}, {pages:,} pages"


def migrated(report: MigrationReport) -> Outcome:
    """After the move."""
    return Outcome(
        ok=True,
        headline=f"in {report.total_time_ms:,} ms by {report.transfer}, {_many(report.rounds, 'round')}; "
        f"the guest stood still for {report.downtime_ms:,} ms",
        meaning=f"{_many(report.private_pages, 'private page')} sealed, "
        f"{_many(report.shared_pages, 'shared page')} in clear, {report.hole_pages:,} never written and so never "
        f"sent; {_size(report.bytes)} on the wire.",
    )


def went_on(guest: GuestReport) -> Outcome:
    """After the guest verified what it brought."""
    chain = f"{guest.chain_entries:,} entries of its hash chain"
    meaning = (
        f"All {chain}, from both hosts, are those that the owner computes from the secret: no page was lost, stale "
        "or mixed up. The payload, hashed again there, is the same."
    )
    if not guest.chain_verified:
        meaning = f"Among {chain} are some that the owner computes otherwise."
    elif guest.payload_sha256_target != guest.payload_sha256:
        meaning = f"The payload, hashed again there, is {_short(guest.payload_sha256_target)}."
    return Outcome(
        ok=guest.ok,
        headline=f"from {guest.ledger_before:,} to {guest.ledger_after:,} updates, {guest.faults} faults",
        meaning=meaning,
    )


def linux_went_on(guest: LinuxGuestReport) -> Outcome:
    """After Linux verified what it brought."""
    return Outcome(
        ok=guest.ok,
        headline=f"from {guest.counter_before:,} to {guest.counter_after:,} pages, from {guest.disk_before:,} to "
        f"{guest.disk_after:,} disk blocks, {_many(guest.faults, 'fault')}",
        meaning="No page or block was lost, stale or mixed up, and no clock went back."
        if guest.ok
        else "It was not encrypted, had no secret, stood still or found damage.",
    )


def searched(report: SecrecyReport) -> Outcome:
    """After the search."""
    places = len(report.searched)
    missing = [name for name in report.searched if name not in report.control_found]
    if report.found:
        return Outcome(
            ok=False,
            headline=f"the secret was FOUND, {_many(len(report.found), 'time')}",
            meaning="; ".join(report.found),
        )
    if missing:
        return Outcome(ok=False, headline=f"no control marker was found in {', '.join(missing)}", meaning="")
    return Outcome(
        ok=True,
        headline=f"not found in {_size(report.bytes_searched)} in {places} places, control markers in all {places}",
        meaning="Everything that either VMM could read, and every byte on the wire, was searched for the planted "
        "secret: as text, as bytes, and in Base64, by halves. That each search works, a marker shows.",
    )


def search_rows(report: SecrecyReport) -> list[tuple[str, str, str]]:
    """Place, control marker, secret."""
    rows = []
    for name in report.searched:
        leaks = [leak for leak in report.found if leak.startswith(f"{name}:")]
        control = "found" if name in report.control_found else "NOT FOUND"
        rows.append((name, control, "FOUND" if leaks else "not found"))
    return rows + [(name, "-", "all zeros, never used here") for name in report.empty]


def verdict(report: Report) -> str:
    """The last word."""
    if report.ok:
        return "Everything held: the guest moved, lost nothing, and nobody saw its secret."
    return "Something did not hold; see above."


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _sum(counts: tuple[int, ...]) -> str:
    return " + ".join(f"{count:,}" for count in counts)


def _short(digest: str) -> str:
    return f"{digest[:8]}…{digest[-4:]}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
