"""How places are read: another process's address space, a memfd it holds, a file.

A process's memfds that guests and handlers share with it are places of their own, read by their descriptor: looking
through a mapping would fill their holes. Everything else that the process can read is its address space.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli.demo.needles import Piece
from sealift.errors import InternalError

SHARED_PLANE: Final = "sealift-shared"
RING_OUT: Final = "sealift-ring-out"
RING_IN: Final = "sealift-ring-in"
"""Names of the memfds, as `sealift.silicon` gives them."""

_OWN_PLACES: Final = frozenset({SHARED_PLANE, RING_OUT, RING_IN})

_PIECE: Final = 4 << 20
"""Bytes read at once."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TOUCHED: Final = 1 << 63 | 1 << 62
"""Pagemap: present, or in the swap (Documentation/admin-guide/mm/pagemap.rst)."""

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)\s*(.*)")
_KERNELS_OWN: Final = frozenset({"[vvar]", "[vvar_vclock]", "[vsyscall]"})
"""Pages of the kernel's, the same in every process; most cannot be read from outside."""


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    name: str
    anonymous: bool


class AddressSpace:
    """Everything a process can read, but for the memfds that are places of their own. It should not be running."""

    def __init__(self, pid: int) -> None:
        self._directory = Path("/proc") / str(pid)

    def pieces(self) -> Iterator[Piece]:
        """Its content; anonymous memory that was never touched is left out, since there is none."""
        with _opened(self._directory / "mem") as memory, _opened(self._directory / "pagemap") as pagemap:
            for mapping in self._mappings():
                ranges = _touched(pagemap, mapping) if mapping.anonymous else [(mapping.start, mapping.end)]
                for start, end in ranges:
                    yield from _read(memory, start, end)

    def _mappings(self) -> Iterator[_Mapping]:
        for line in (self._directory / "maps").read_text().splitlines():
            match = _MAPPING.fullmatch(line)
            if match is None:
                raise InternalError(f"/proc has a mapping that does not parse: {line!r}")
            start, end, rights, inode, name = match.groups()
            memfd = name.removeprefix("/memfd:").removesuffix(" (deleted)")
            if rights[0] == "r" and name not in _KERNELS_OWN and not (name != memfd and memfd in _OWN_PLACES):
                yield _Mapping(int(start, 16), int(end, 16), name, inode == "0")


def _touched(pagemap: int, mapping: _Mapping) -> Iterator[tuple[int, int]]:
    """The parts of a mapping that have memory."""
    count = (mapping.end - mapping.start) // _PAGE
    entries = memoryview(os.pread(pagemap, count * 8, mapping.start // _PAGE * 8)).cast("Q")
    if len(entries) != count:
        raise InternalError(f"/proc tells of {len(entries)} of the {count} pages at {mapping.start:#x}")
    first: int | None = None
    for number, entry in enumerate([*entries, 0]):
        if entry & _TOUCHED and first is None:
            first = number
        elif not entry & _TOUCHED and first is not None:
            yield mapping.start + first * _PAGE, mapping.start + number * _PAGE
            first = None


class Memfd:
    """A memfd that a process holds, by its name.

    Raises:
        InternalError: it holds none, or several.
    """

    def __init__(self, pid: int, name: str) -> None:
        target = f"/memfd:{name} (deleted)"
        found = {}
        for entry in (Path("/proc") / str(pid) / "fd").iterdir():
            if entry.readlink() == Path(target):
                found[entry.stat().st_ino] = entry
        if len(found) != 1:
            raise InternalError(f"process {pid} holds {len(found)} memfds {name}, not one")
        (self.path,) = found.values()

    def pieces(self) -> Iterator[Piece]:
        """Its content without holes, which stay holes."""
        with _opened(self.path) as fd:
            end = 0
            while True:
                try:
                    start = os.lseek(fd, end, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        return  # a hole up to the end
                    raise
                end = os.lseek(fd, start, os.SEEK_HOLE)
                yield from _read(fd, start, end)

    def plant(self, data: bytes) -> None:
        """Write `data` to its start, with the rights its holder has.

        Raises:
            PermissionError: its holder could not write it either.
        """
        with _opened(self.path, os.O_RDWR) as fd:
            os.pwrite(fd, data, 0)

    def is_zero(self) -> bool:
        """Whether every byte of it is 0."""
        return not any(any(piece.data) for piece in self.pieces())


class RecordedFile:
    """A file's bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pieces(self) -> Iterator[Piece]:
        """All of it."""
        with _opened(self._path) as fd:
            yield from _read(fd, 0, os.fstat(fd).st_size)


def _read(fd: int, start: int, end: int) -> Iterator[Piece]:
    while start < end:
        data = os.pread(fd, min(_PIECE, end - start), start)
        if not data:
            raise InternalError(f"nothing could be read at {start:#x}, where there is memory up to {end:#x}")
        yield Piece(start, data)
        start += len(data)


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
