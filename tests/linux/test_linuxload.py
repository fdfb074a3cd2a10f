"""The Linux guest's program, run under the Linux that is here: it finds no fault where none is, and those that are."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealift.cli.demo.linux import LinuxPrinted
from sealift.guest.programs import linux_program

BLOCK = 4096
BLOCKS = 4


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A small disk."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(BLOCKS * BLOCK))
    return path


class Load:
    """A running linuxload, and what it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = LinuxPrinted()

    def until(self, wanted: str) -> None:
        """Read until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.take(line.rstrip("\n"))
            if re.search(wanted, line):
                return
        raise AssertionError(f"it ended before {wanted}; it had printed {self.printed}")


@pytest.fixture
def load(tmp_path: Path, disk: Path) -> Iterator[Load]:
    """It works on the disk."""
    try:
        os.close(os.open(disk, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip(f"NOT TESTED: files in {tmp_path} cannot be read past the page cache")
    program = tmp_path / "linuxload"
    program.write_bytes(linux_program())
    program.chmod(0o700)
    with subprocess.Popen([program, disk], stdout=subprocess.PIPE, text=True, process_group=0) as process:
        watchdog = threading.Timer(60, os.killpg, (process.pid, 9))
        watchdog.start()
        yield Load(process)
        watchdog.cancel()
        os.killpg(process.pid, 9)


def test_memory_disk_and_clocks_are_verified_without_a_fault(load: Load) -> None:
    load.until(r"counter [1-9]\d{3,} faults 0 disk [1-9]\d")
    assert load.printed.faults == []
    assert load.printed.secret_bytes == 0


def test_a_block_that_somebody_else_wrote_is_a_fault(load: Load, disk: Path) -> None:
    load.until(r"disk [1-9]")
    with disk.open("r+b") as file:
        for block in range(BLOCKS):
            file.seek(block * BLOCK + 8)
            file.write(b"damage")
    load.until("FAULT disk")
    load.until("counter")
    assert load.printed.reported_faults > 0
