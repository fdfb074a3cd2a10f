"""What a guest is made of: the same recipe for the VMM that loads it and for the owner that expects it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from sealift.errors import UserError
from sealift.guest import programs
from sealift.guest.handler.digest import handler_digest
from sealift.launch.image import GuestRecipe, machine_for
from sealift.launch.pieces import Content
from sealift.launch.ram import ram_layout

FILE_LIMIT: Final = 4 << 30
"""Bytes of a kernel, payload or initrd: more than any guest here has memory for."""


def make_recipe(
    memory: int,
    vcpus: int,
    kernel: str,
    payload: Path | str | None = None,
    command_line: str = "",
    initrd: Path | str | None = None,
) -> GuestRecipe:
    """The recipe of a guest, on the machine that its kernel is made for.

    Args:
        memory: bytes of RAM.
        vcpus: how many.
        kernel: name of a built-in program, or path of an ELF file or a Linux bzImage.
        payload: path of the payload.
        command_line: for the kernel.
        initrd: path of Linux's initrd.

    Raises:
        UserError: it does not fit together, or a file cannot be read.
    """
    image = kernel_image(kernel)
    machine = machine_for(image)
    return GuestRecipe(
        startup=programs.startup_blob(),
        layout=ram_layout(memory, machine),
        vcpus=vcpus,
        handler_digest=handler_digest(),
        kernel=image,
        payload=b"" if payload is None else file_content("payload", Path(payload)),
        command_line=command_line,
        machine=machine,
        initrd=b"" if initrd is None else file_content("initrd", Path(initrd)),
    )


def kernel_image(kernel: str) -> bytes:
    """The file of a built-in program, or at a path.

    Raises:
        UserError: there is neither.
    """
    if kernel in programs.program_names():
        return programs.program(kernel)
    path = Path(kernel)
    if not os.path.lexists(path) and "/" not in kernel:
        known = ", ".join(programs.program_names())
        raise UserError(f"there is no kernel {kernel!r}: it is no file, and the built-in ones are {known}")
    return read_file("kernel", path)


def read_file(what: str, path: Path) -> bytes:
    """A whole file; `what` it is, messages say.

    Raises:
        UserError: it cannot be read.
    """
    try:
        _check_file(what, path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read") from error


def file_content(what: str, path: Path) -> Content:
    """A file as content that is read part by part; `what` it is, messages say.

    Raises:
        UserError: it cannot be read.
    """
    try:
        size = _check_file(what, path)
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read") from error
    # Files without a size of their own (those of /proc) are short, and made anew for every reader.
    return _FileContent(what, path, size) if size else read_file(what, path)


class _FileContent:
    """A file of `size` bytes, opened for each part: it may be read once at a launch, and never again."""

    def __init__(self, what: str, path: Path, size: int) -> None:
        self._what = what
        self._path = path
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise UserError(f"the {self._what} {self._path} cannot be read") from error
        if len(data) != stop - start:
            raise UserError(f"the {self._what} {self._path} has become shorter while it was read")
        return data


def _check_file(what: str, path: Path) -> int:
    """The size of a file that can be read whole."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"the {what} {path} is no regular file")
    if status.st_size > FILE_LIMIT:
        raise UserError(f"the {what} {path} is larger than any guest's memory")
    return status.st_size
