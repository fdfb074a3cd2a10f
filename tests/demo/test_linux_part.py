"""What a Linux guest prints is read as it is meant, and judged as it must be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sealift.cli.demo import words
from sealift.cli.demo.linux import LinuxPrinted, _walked, linux_report
from sealift.cli.demo.report import LinuxGuestReport

GUEST = LinuxGuestReport("6.1.0", "Memory Encryption Features active: AMD SEV", 2, 64, 10, 20, 1, 2, 0)


def printed(*lines: str) -> LinuxPrinted:
    """After these lines."""
    result = LinuxPrinted()
    for line in lines:
        result.take(line)
    return result


def test_both_hosts_consoles_make_one_report() -> None:
    before = printed(
        "[    0.1] Some: words",
        "linux 6.1.0-56-cloud-amd64",
        "vcpus 2",
        "encryption Memory Encryption Features active: AMD SEV",
        "secret 64",
        "counter 0 faults 0 disk 0",
        "counter 1500 faults 0 disk 70",
        "counter 16",
    )
    after = printed("00 faults 0 disk 72", "counter 3000 faults 0 disk 200")
    report = linux_report(before, after)
    assert report == LinuxGuestReport(
        kernel="6.1.0-56-cloud-amd64",
        memory_encryption_line="Memory Encryption Features active: AMD SEV",
        vcpus=2,
        secret_bytes=64,
        counter_before=1500,
        counter_after=3000,
        disk_before=70,
        disk_after=200,
        faults=0,
    )
    assert report.ok
    assert words.linux_went_on(report).ok


@pytest.mark.parametrize("line", ["FAULT worker 0 damaged page 7", "ULT FAULT clock", "counter 9 faults 1 disk 1"])
def test_a_fault_on_either_host_counts(line: str) -> None:
    assert linux_report(printed(line), printed()).faults == 1
    assert linux_report(printed(), printed(line)).faults == 1


@pytest.mark.parametrize(
    "guest",
    [
        replace(GUEST, faults=1),
        replace(GUEST, memory_encryption_line=""),
        replace(GUEST, secret_bytes=0),
        replace(GUEST, counter_after=10),
        replace(GUEST, counter_before=0),
        replace(GUEST, disk_after=1),
        replace(GUEST, kernel=""),
    ],
)
def test_one_part_that_does_not_hold_is_no_success(guest: LinuxGuestReport) -> None:
    assert GUEST.ok
    assert not guest.ok
    assert not words.linux_went_on(guest).ok


def test_a_walk_is_through_everything() -> None:
    walked = _walked(printed("counter 1000 faults 0 disk 100"))
    assert not walked(printed())
    assert not walked(printed("counter 1500 faults 0 disk 300"))
    assert not walked(printed("counter 1600 faults 0 disk 200"))
    assert walked(printed("counter 1600 faults 0 disk 300"))
