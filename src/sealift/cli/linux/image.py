"""The Linux guest that is demonstrated and tested: Debian's cloud kernel, and a file system with linuxload in it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli.linux.initramfs import initramfs
from sealift.cli.linux.kernels import Kernel, KernelWish, kernel
from sealift.errors import UserError
from sealift.guest.programs import linux_program

_MODULES: Final = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng")

SERIES: Final = {
    "6.1": KernelWish(r"linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64", _MODULES),
    "6.12": KernelWish(r"linux-image-6\.12\.[0-9]+(\+(deb[0-9]+|bpo)|-[0-9]+)-cloud-amd64", _MODULES),
}
"""Kernels that have been seen to work as guests, by their version's first two numbers."""

DEFAULT_SERIES: Final = "6.1"
"""Debian 12's; Debian 13 has another, which `guest_kernel` finds."""

QUIET: Final = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on"
"""A command line with which its kernels say little, which every byte of would be an exit, and lose no time."""


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """What `sealift run` takes as --kernel and --initrd."""

    kernel: Path
    initrd: Path


def guest_kernel(series: str | None = None) -> Kernel:
    """A kernel of that series, or of the first of all series that can be had; fetched if need be.

    Raises:
        UserError: there is no such series, or something is missing here; the message says what.
    """
    if series is None:
        others = [name for name in SERIES if name != DEFAULT_SERIES]
        try:
            return kernel(SERIES[DEFAULT_SERIES])
        except UserError:
            for name in others:
                with contextlib.suppress(UserError):
                    return kernel(SERIES[name])
            raise
    if series not in SERIES:
        raise UserError(f"there is no Linux guest of series {series!r}; there are {', '.join(SERIES)}")
    return kernel(SERIES[series])


def linux_image(directory: Path, series: str | None = None) -> LinuxImage:
    """`guest_kernel` of that series, and its initial file system, made in `directory`.

    Raises:
        UserError: as there; or there is no busybox.
    """
    found = guest_kernel(series)
    archive = initramfs(found, "guest_init.sh")
    archive.program("bin/linuxload", linux_program())
    initrd = directory / "initrd"
    initrd.write_bytes(archive.compressed())
    return LinuxImage(found.vmlinuz, initrd)
