"""What every initial file system here is made of: a static busybox, modules in load order, and an /init."""

from __future__ import annotations

import struct
from importlib.resources import files
from pathlib import Path
from typing import Final

from sealift.cli.linux.cpio import Archive
from sealift.cli.linux.kernels import Kernel
from sealift.cli.linux.packages import tool
from sealift.errors import UserError

_DIRECTORIES: Final = ("bin", "dev", "modules", "proc", "sys", "tmp")
_PT_INTERP: Final = 3


def initramfs(kernel: Kernel, init: str) -> Archive:
    """An archive whose /init is the script `init` beside this file; it finds the modules in /modules, sorted.

    Raises:
        UserError: this machine has no static busybox.
    """
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.program("bin/busybox", _busybox())
    for module in kernel.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.program("init", files(__package__).joinpath(init).read_bytes())
    return archive


def _busybox() -> bytes:
    program = Path(tool("busybox", "busybox-static")).read_bytes()
    if not _is_static(program):
        raise UserError(
            "the busybox here needs libraries; on Debian, apt-get install busybox-static brings one that does not"
        )
    return program


def _is_static(program: bytes) -> bool:
    """Whether a 64-bit ELF file names no interpreter."""
    (table,) = struct.unpack_from("<Q", program, 0x20)
    size, count = struct.unpack_from("<HH", program, 0x36)
    types = (struct.unpack_from("<I", program, table + index * size)[0] for index in range(count))
    return _PT_INTERP not in types
