"""The Linux guest that is demonstrated and tested: Debian's cloud kernel, and a file system with linuxload in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli.linux.initramfs import initramfs
from sealift.cli.linux.kernels import KernelWish, kernel
from sealift.errors import UserError
from sealift.guest.programs import linux_program

_MODULES: Final = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng")

SERIES: Final = {
    "6.1": KernelWish(r"linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64", _MODULES),
    "6.12": KernelWish(r"linux-image-6\.12\.[0-9]+(\+|-)(deb)?[0-9]+-cloud-amd64", _MODULES),
}
"""Kernels that have been seen to work as guests, by their version's first two numbers."""

DEFAULT_SERIES: Final = "6.1"

QUIET: Final = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on"
"""A command line with which its kernels say little, which every byte of would be an exit, and lose no time."""


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """What `sealift run` takes as --kernel and --initrd."""

    kernel: Path
    initrd: Path


def linux_image(directory: Path, series: str = DEFAULT_SERIES) -> LinuxImage:
    """A kernel of that series, fetched if need be, and its initial file system, made in `directory`.

    Raises:
        UserError: there is no such series, or something is missing here; the message says what.
    """
    if series not in SERIES:
        raise UserError(f"there is no Linux guest of series {series!r}; there are {', '.join(SERIES)}")
    found = kernel(SERIES[series])
    archive = initramfs(found, "guest_init.sh")
    archive.program("bin/linuxload", linux_program())
    initrd = directory / f"initrd-{series}"
    initrd.write_bytes(archive.compressed())
    return LinuxImage(found.vmlinuz, initrd)
