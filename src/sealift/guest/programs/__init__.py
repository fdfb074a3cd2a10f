"""The programs that run inside guests, as built from the sources beside this file (``build.mk``, PROVENANCE.md).

``startup.bin`` is the start-up code of every launch image; the others are kernels:

- ``ledger`` verifies its memory as it goes and prints a hash chain; it notices what a migration loses;
- ``idle`` says that it runs and halts;
- ``writer`` writes to so many pages a second, for measurements.

``linuxload`` is none of them: a program under Linux, which watches its memory, its disk and its clocks.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from sealift.errors import UserError

_STARTUP: Final = "startup.bin"
_LINUX_PROGRAM: Final = "linuxload"
_SUFFIX: Final = ".elf"


def startup_blob() -> bytes:
    """The start-up code, for `sealift.launch.image.GuestRecipe`."""
    return files(__name__).joinpath(_STARTUP).read_bytes()


def linux_program() -> bytes:
    """The program for Linux guests, a static executable."""
    return files(__name__).joinpath(_LINUX_PROGRAM).read_bytes()


def program_names() -> tuple[str, ...]:
    """Names of the built-in kernels, sorted."""
    entries = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX)))


def program(name: str) -> bytes:
    """The ELF file of a built-in kernel.

    Raises:
        UserError: there is none of that name.
    """
    if name not in program_names():
        raise UserError(f"there is no built-in guest program {name!r}; there are {', '.join(program_names())}")
    return files(__name__).joinpath(name + _SUFFIX).read_bytes()
