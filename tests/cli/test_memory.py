"""The VMM's memory does not grow with its guest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift

SLACK = 32 << 20
"""Bytes by which two runs of one program may differ: allocators, thread stacks, modules."""


def peak_of_guest(sealift: Callable[..., Sealift], payload: Path) -> int:
    """The VMM's peak resident memory for a guest that carries `payload`, in bytes."""
    memory = payload.stat().st_size + (16 << 20)
    process = sealift("run", "--kernel", "idle", "--memory", str(memory), "--payload", payload)
    process.stderr.wait_for("runs")
    status = (Path("/proc") / str(process.process.pid) / "status").read_text()
    process.process.terminate()
    assert process.wait() == 0
    (peak,) = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    assert peak[2] == "kB"
    return int(peak[1]) << 10


@pytest.mark.timeout(240)
def test_a_large_payload_takes_no_memory_of_the_vmm(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(1 << 20))
    peaks = []
    for size in (16 << 20, 256 << 20):
        os.truncate(payload, size)
        peaks.append(peak_of_guest(sealift, payload))
    assert peaks[1] - peaks[0] < SLACK
