"""What every initial file system here is made of: a static busybox, modules in load order, and an /init."""

from __future__ import annotations

import shutil
import struct
from importlib.resources import files
from pathlib import Path
from typing import Final

from sealift.cli.linux.cache import cached
from sealift.cli.linux.cpio import Archive
from sealift.cli.linux.kernels import Kernel
from sealift.cli.linux.packages import unpacked

_DIRECTORIES: Final = ("bin", "dev", "modules", "proc", "sys", "tmp")
_PT_INTERP: Final = 3
_BUSYBOX: Final = "busybox-static"


def initramfs(kernel: Kernel, init: str) -> Archive:
    """An archive whose /init is the script `init` beside this file; it finds the modules in /modules, sorted.

    Raises:
        UserError: there is no static busybox here, and none can be had; the message says what is missing.
    """
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.program("bin/busybox", busybox().read_bytes())
    for module in kernel.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.program("init", files(__package__).joinpath(init).read_bytes())
    return archive


def busybox() -> Path:
    """A busybox that needs no libraries: this machine's, or else Debian's, which is kept in the cache.

    Raises:
        UserError: neither can be had; the message says what is missing.
    """
    here = shutil.which("busybox")
    if here is not None and _is_static(Path(here).read_bytes()):
        return Path(here)

    def fill(made: Path) -> None:
        with unpacked(_BUSYBOX) as tree:
            (found,) = (path for path in tree.rglob("busybox") if path.is_file() and path.parent.name == "bin")
            shutil.copy(found, made / "busybox")

    return cached(_BUSYBOX, fill) / "busybox"


def _is_static(program: bytes) -> bool:
    """Whether a 64-bit ELF file names no interpreter."""
    (table,) = struct.unpack_from("<Q", program, 0x20)
    size, count = struct.unpack_from("<HH", program, 0x36)
    types = (struct.unpack_from("<I", program, table + index * size)[0] for index in range(count))
    return _PT_INTERP not in types
