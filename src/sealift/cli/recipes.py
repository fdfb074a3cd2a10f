"""What a guest is made of: the same recipe for the VMM that loads it and for the owner that expects it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sealift.address import Gpa, RamBlock, RamLayout, page_aligned
from sealift.errors import UserError
from sealift.guest import programs
from sealift.guest.handler.digest import handler_digest
from sealift.launch.image import GuestRecipe

RAM_BLOCK: Final = "pc.ram"

FILE_LIMIT: Final = 4 << 30
"""Bytes of a kernel or payload: more than any guest here has memory for."""


def make_recipe(
    memory: int, vcpus: int, kernel: str | None, payload: str | None = None, command_line: str = ""
) -> GuestRecipe:
    """The recipe of a guest with one RAMBlock.

    Args:
        memory: bytes of RAM.
        vcpus: how many.
        kernel: name of a built-in program or path of an ELF file; None makes a receiver.
        payload: path of the payload.
        command_line: for the kernel.

    Raises:
        UserError: it does not fit together, or a file cannot be read.
    """
    return GuestRecipe(
        startup=programs.startup_blob(),
        layout=ram_layout(memory),
        vcpus=vcpus,
        handler_digest=handler_digest(),
        kernel=None if kernel is None else kernel_image(kernel),
        payload=b"" if payload is None else read_file("payload", Path(payload)),
        command_line=command_line,
    )


def ram_layout(memory: int) -> RamLayout:
    """The RAM of a guest with `memory` bytes.

    Raises:
        UserError: that is not a whole number of pages.
    """
    if memory <= 0 or not page_aligned(memory):
        raise UserError(f"a guest's memory is made of pages of 4 KiB; {memory:,} bytes are not")
    return RamLayout((RamBlock(RAM_BLOCK, Gpa(0), memory),))


def kernel_image(kernel: str) -> bytes:
    """The ELF file of a built-in program, or at a path.

    Raises:
        UserError: there is neither.
    """
    if kernel in programs.program_names():
        return programs.program(kernel)
    path = Path(kernel)
    if not path.exists() and "/" not in kernel:
        known = ", ".join(programs.program_names())
        raise UserError(f"there is no kernel {kernel!r}: it is no file, and the built-in ones are {known}")
    return read_file("kernel", path)


def read_file(what: str, path: Path) -> bytes:
    """A whole file; `what` it is, messages say.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise UserError(f"the {what} {path} is larger than any guest's memory")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read ({error.strerror})") from error
