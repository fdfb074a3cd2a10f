"""An unmodified Linux at its console, as its users have it: it is typed at, and its panic is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import harness
from harness import Sealift
from sealift.cli.linux.image import guest_kernel
from sealift.cli.linux.initramfs import initramfs

PATIENCE_S = 400.0
"""In the rig everything takes about 20 times as long."""

SHELL = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
exec setsid cttyhack sh -i
"""

QUIET = "console=ttyS0 quiet mitigations=off no_timer_check random.trust_cpu=on"
"""Without ``panic=``: a kernel that panics waits for ever."""


@pytest.mark.timeout(2 * PATIENCE_S)
def test_linux_is_typed_at_and_its_panic_is_told(
    sealift: Callable[..., Sealift], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "PATIENCE_S", PATIENCE_S)
    kernel = guest_kernel()
    archive = initramfs(kernel, "guest_init.sh")
    archive.program("init", SHELL)  # the later of two files of one name is the one that counts
    initrd = tmp_path / "initrd"
    initrd.write_bytes(archive.compressed())
    guest = sealift("run", "--name", "g", "--kernel", kernel.vmlinuz, "--initrd", initrd, "--append", QUIET)
    guest.stdout.wait_for("# ")
    keyboard, keys = os.pipe()
    with open(keys, "wb", buffering=0) as typed:  # noqa: PTH123  # it is a descriptor
        sealift("console", "g", stdin=keyboard)
        os.close(keyboard)
        typed.write(b"echo $((6 * 7))\n")
        guest.stdout.wait_for("\n42")
        typed.write(b"echo c > /proc/sysrq-trigger\n")
        assert guest.wait() != 0
    report = guest.report()
    assert "its kernel panicked" in report
    assert "Kernel panic - not syncing: sysrq triggered crash" in report
