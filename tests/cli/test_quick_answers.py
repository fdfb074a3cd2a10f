"""`sealift cpu` and `sealift firmware` answer in at most three times what Python takes to start and import click."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import judges

RUNS = 5
"""The least of them counts: whatever else the machine does only adds."""

IMAGE = Path("/usr/share/ovmf/OVMF.fd")
DESCRIPTOR = Path("/usr/share/qemu/firmware/60-edk2-x86_64.json")


def cpu_s(*arguments: str) -> float:
    """Seconds of processor time that Python takes with these arguments."""
    process = subprocess.Popen((sys.executable, *arguments), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    "command",
    [
        "cpu list",
        "cpu show Nehalem",
        "cpu levels",
        "cpu baseline Haswell-v4 Nehalem",
        "cpu compare EPYC-v2 EPYC-Rome-v2",
        "cpu host",
        "cpu host --engine unicorn",
        "firmware list",
        f"firmware show {DESCRIPTOR.name}",
        "firmware select --machine pc-q35-7.2",
        f"firmware validate {DESCRIPTOR}",
        f"firmware inspect {IMAGE}",
    ],
)
def test_an_answer_takes_at_most_three_times_as_long_as_starting(command: str) -> None:
    judges.file(IMAGE, "ovmf")
    pairs = [(cpu_s("-c", "import click"), cpu_s("-m", "sealift.cli", *command.split())) for _ in range(RUNS)]
    start, answer = (min(times) for times in zip(*pairs, strict=True))
    assert answer <= 3 * start
