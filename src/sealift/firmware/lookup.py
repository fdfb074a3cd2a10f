"""Where descriptors are, and which of them count.

::

    /usr/share/qemu/firmware          of packages
    /etc/qemu/firmware                of the administrator
    $XDG_CONFIG_HOME/qemu/firmware    of the user (~/.config without the variable)

A file of the same name in a later directory takes an earlier one's place; if it is empty, there is none of that name.
What is left is in the order of the names. Names that begin with a dot, and what is no file, are passed over.
Source: QEMU ``docs/interop/firmware.json``. libvirt looks into the user's directory only where it runs for one user.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sealift.errors import StreamError
from sealift.firmware.descriptor import SIZE_LIMIT, Descriptor, decode


@dataclass(frozen=True, slots=True)
class Found:
    """One file name, and what became of it.

    Attributes:
        name: of the file.
        path: the file that counts.
        replaced: files of that name that do not.
        descriptor: what it says; None if it is empty or cannot be used.
        problem: why it cannot be used; None if it can, or is empty.
    """

    name: str
    path: Path
    replaced: tuple[Path, ...]
    descriptor: Descriptor | None
    problem: str | None = None

    @property
    def masked(self) -> bool:
        """Whether an empty file hides those of this name."""
        return self.descriptor is None and self.problem is None


@dataclass(frozen=True, slots=True)
class Lookup:
    """All that was found.

    Attributes:
        files: in the order of their names, the order of preference.
        unreadable: directories that could not be read, each with the reason.
    """

    files: tuple[Found, ...]
    unreadable: tuple[str, ...]


def directories(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Where to look, the most specific last."""
    user = environment.get("XDG_CONFIG_HOME", "")
    home = Path(user) if user.startswith("/") else Path(environment.get("HOME", "/")) / ".config"
    return tuple(base / "qemu" / "firmware" for base in (Path("/usr/share"), Path("/etc"), home))


def look_up(places: Sequence[Path]) -> Lookup:
    """Read every descriptor in `places`, the most specific last; one that is bad hides no other."""
    by_name: dict[str, list[Path]] = {}
    unreadable = []
    for place in places:
        try:
            entries = sorted(entry.name for entry in os.scandir(place) if _is_file(entry))
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable.append(f"{place} cannot be read: {error.strerror}")
            continue
        for name in entries:
            if not name.startswith("."):
                by_name.setdefault(name, []).append(place / name)
    return Lookup(tuple(_read(name, by_name[name]) for name in sorted(by_name)), tuple(unreadable))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Of a link, whether it leads to a file; a link that leads nowhere, or to itself, is there and cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry).exists())
    except OSError:
        return True


def _read(name: str, paths: Sequence[Path]) -> Found:
    *replaced, path = paths
    try:
        data = read(path)
        return Found(name, path, tuple(replaced), decode(data) if data else None)
    except StreamError as error:
        return Found(name, path, tuple(replaced), None, str(error))


def read(path: Path) -> bytes:
    """A descriptor's bytes, never many more than are allowed.

    Raises:
        StreamError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise StreamError(f"it cannot be read: {error.strerror}") from None
