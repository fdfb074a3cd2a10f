"""Linux's bzImage as a file: what its header says, checked, and the part of it that is loaded.

A bzImage is some sectors of real-mode code, which nobody needs who enters the kernel in 64-bit mode, and the
*protected-mode kernel*, which is all that is loaded::

    0                    0x1f1           (setup_sects + 1) * 512               … + syssize * 16
    | real-mode code     | setup header … | protected-mode kernel              | signature, padding

The file comes from a user and the result is measured, so everything that is used is checked. Fields have the same
offsets in the file and in boot_params.

Source: Linux, ``Documentation/arch/x86/boot.rst``, "The Real-Mode Kernel Header" and "64-bit Boot Protocol".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sealift.address import Gpa
from sealift.errors import UserError
from sealift.launch.fields import Field

SETUP_HEADER: Final = 0x1F1
SETUP_HEADER_LIMIT: Final = 0x290
"""First offset after the room of the setup header in boot_params."""

ENTRY_64: Final = 0x200
"""The 64-bit entry point, from the start of the protected-mode kernel."""

_SETUP_SECTS: Final = Field(0x1F1, 1)
_SYSSIZE: Final = Field(0x1F4, 4)
_BOOT_FLAG: Final = Field(0x1FE, 2)
_HEADER_LENGTH: Final = Field(0x201, 1)  # the offset of the jump over the header
_VERSION: Final = Field(0x206, 2)
_KERNEL_VERSION: Final = Field(0x20E, 2)
_LOADFLAGS: Final = Field(0x211, 1)
_INITRD_ADDR_MAX: Final = Field(0x22C, 4)
_KERNEL_ALIGNMENT: Final = Field(0x230, 4)
_RELOCATABLE_KERNEL: Final = Field(0x234, 1)
_XLOADFLAGS: Final = Field(0x236, 2)
_CMDLINE_SIZE: Final = Field(0x238, 4)
_PREF_ADDRESS: Final = Field(0x258, 8)
_INIT_SIZE: Final = Field(0x260, 4)

_MAGIC_AT: Final = 0x202
_MAGIC: Final = b"HdrS"
_OLDEST: Final = 0x20C
"""Protocol 2.12, of Linux 3.8: the first with xloadflags, which say whether there is a 64-bit entry point."""
_HEADER_END: Final = 0x264
"""First offset after the fields above."""
_BOOT_SIGNATURE: Final = 0xAA55
_LOADED_HIGH: Final = 1 << 0
_XLF_KERNEL_64: Final = 1 << 0
_SECTOR: Final = 512
_PARAGRAPH: Final = 16
_DEFAULT_SETUP_SECTS: Final = 4
_VERSION_LIMIT: Final = 256
"""Bytes of the version string; those of distributions have about 100."""


@dataclass(frozen=True, slots=True)
class BzImage:
    """A bzImage that can be entered in 64-bit mode.

    Attributes:
        header: the setup header, which belongs into boot_params at `SETUP_HEADER`.
        kernel: the protected-mode kernel.
        version: the kernel's own version string, for people; empty if it has none.
        alignment: what the load address of a relocatable kernel must be a multiple of.
        fixed: the only load address of a kernel that is not relocatable; None of one that is.
        init_size: bytes it uses from its load address on, before it looks at the memory map.
        initrd_end: first address that the initrd must not reach.
        command_line_limit: longest command line in bytes, without its terminating zero.
    """

    header: bytes
    kernel: bytes
    version: str
    alignment: int
    fixed: Gpa | None
    init_size: int
    initrd_end: int
    command_line_limit: int

    def __str__(self) -> str:
        return f"Linux {self.version.split(' ')[0]}".rstrip()


def is_bzimage(image: bytes) -> bool:
    """Whether a file has the magic number of a bzImage."""
    return image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def parse(image: bytes) -> BzImage:
    """Read a bzImage.

    Raises:
        UserError: it is none, or none that can be entered in 64-bit mode; the message names its first fault.
    """
    if not is_bzimage(image):
        raise UserError("the kernel file is not a bzImage: it has no HdrS at 0x202")
    real_mode = image[:SETUP_HEADER_LIMIT].ljust(SETUP_HEADER_LIMIT, b"\0")
    start = ((_SETUP_SECTS.read(real_mode) or _DEFAULT_SETUP_SECTS) + 1) * _SECTOR
    end = start + _SYSSIZE.read(real_mode) * _PARAGRAPH
    _check(real_mode, end - start)
    if len(image) < end:
        raise UserError(f"the kernel file is truncated: it has {len(image):,} of {end:,} bytes")
    return BzImage(
        header=real_mode[SETUP_HEADER : _header_end(real_mode)],
        kernel=image[start:end],
        version=_version(image[:start]),
        alignment=_KERNEL_ALIGNMENT.read(real_mode),
        fixed=None if _RELOCATABLE_KERNEL.read(real_mode) else Gpa(_PREF_ADDRESS.read(real_mode)),
        init_size=_INIT_SIZE.read(real_mode),
        initrd_end=_INITRD_ADDR_MAX.read(real_mode) + 1,
        command_line_limit=_CMDLINE_SIZE.read(real_mode),
    )


def _check(real_mode: bytes, kernel_size: int) -> None:
    """Demand a header that makes sense; the version comes before the fields it brought."""
    version, header_end = _VERSION.read(real_mode), _header_end(real_mode)
    init_size, alignment = _INIT_SIZE.read(real_mode), _KERNEL_ALIGNMENT.read(real_mode)
    faults = {
        "is not a bzImage: it has no boot signature at 0x1fe": _BOOT_FLAG.read(real_mode) != _BOOT_SIGNATURE,
        f"has boot protocol {version >> 8}.{version & 0xFF:02}; 2.12 or later is needed": version < _OLDEST,
        f"has a setup header that ends at {header_end:#x}": not _HEADER_END <= header_end <= SETUP_HEADER_LIMIT,
        "is a zImage, for low memory; build a bzImage": not _LOADFLAGS.read(real_mode) & _LOADED_HIGH,
        "has no 64-bit entry point; build it with CONFIG_X86_64": not _XLOADFLAGS.read(real_mode) & _XLF_KERNEL_64,
        f"has {kernel_size} bytes of protected-mode kernel, too few": kernel_size <= ENTRY_64,
        f"says that it needs {init_size:,} bytes of memory, but loads {kernel_size:,}": init_size < kernel_size,
        f"asks to be aligned to {alignment:#x}, which is no power of two": alignment.bit_count() != 1,
    }
    for fault, present in faults.items():
        if present:
            raise UserError(f"the kernel file {fault}")


def _header_end(real_mode: bytes) -> int:
    return _MAGIC_AT + _HEADER_LENGTH.read(real_mode)


def _version(real_mode: bytes) -> str:
    """The version string, whose pointer does not count the boot sector; empty if it is nothing to print."""
    pointer = _KERNEL_VERSION.read(real_mode)
    text = real_mode[pointer + _SECTOR :][:_VERSION_LIMIT].split(b"\0", 1)[0] if pointer else b""
    shown = text.decode("ascii", "replace")
    return shown if shown.isascii() and shown.isprintable() else ""
