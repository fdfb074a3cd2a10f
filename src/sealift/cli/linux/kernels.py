"""Debian's kernels with the modules that are wanted of them.

Which modules those need is read from the modules themselves (section ``.modinfo``), so no depmod is needed. One
fetched kernel stays in the cache and is used from then on; remove the cache to get a newer one.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli.linux.cache import cached
from sealift.cli.linux.packages import newest, numbers, unpacked
from sealift.cli.places import cache_directory
from sealift.errors import UserError

_SHELF: Final = "kernels"
_DEPENDS: Final = re.compile(rb"\0depends=([\w,-]*)\0")
_MODULE: Final = re.compile(r"(.+)\.ko(\.xz)?")


@dataclass(frozen=True, slots=True)
class KernelWish:
    """A kernel that is wanted.

    Attributes:
        package: pattern of its package's name.
        modules: what it must be able to load, as `modprobe` names them; those it has built in are fine too.
    """

    package: str
    modules: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """Of its place in the cache; another list of modules is another place."""
        return "." + hashlib.sha256(" ".join(self.modules).encode()).hexdigest()[:8]

    def found(self) -> str | None:
        """The place of the newest such kernel in the cache, if there is one."""
        shelf = cache_directory() / _SHELF
        wanted = re.compile(self.package + re.escape(self.suffix))
        names = [path.name for path in shelf.iterdir() if wanted.fullmatch(path.name)] if shelf.is_dir() else []
        return f"{_SHELF}/{max(names, key=numbers)}" if names else None

    def place(self, package: str) -> str:
        """Where in the cache a package of this wish goes."""
        return f"{_SHELF}/{package}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the cache.

    Attributes:
        vmlinuz: the image.
        modules: what to load, uncompressed, in this order.
    """

    vmlinuz: Path
    modules: tuple[Path, ...]


def kernel(wish: KernelWish) -> Kernel:
    """The newest such kernel in the cache, or else the newest that apt knows.

    Raises:
        UserError: it cannot be had; the message says what is missing.
    """
    place = wish.found() or wish.place(newest(wish.package))
    package = Path(place).name.removesuffix(wish.suffix)

    def fill(made: Path) -> None:
        with unpacked(package) as tree:
            _take(tree, package.removeprefix("linux-image-"), wish.modules, made)

    made = cached(place, fill)
    return Kernel(made / "vmlinuz", tuple(sorted((made / "modules").iterdir())))


def _take(tree: Path, release: str, wanted: tuple[str, ...], made: Path) -> None:
    """Keep of an unpacked package what is wanted."""
    shutil.copyfile(tree / "boot" / f"vmlinuz-{release}", made / "vmlinuz")
    directory = tree / "lib" / "modules" / release
    available = {_name(match[1]): path for path in directory.rglob("*.ko*") if (match := _MODULE.fullmatch(path.name))}
    built_in = {_name(Path(line).stem) for line in (directory / "modules.builtin").read_text().split()}
    (made / "modules").mkdir()
    order: dict[str, bytes] = {}
    for name in wanted:
        if _name(name) not in built_in:
            _load(_name(name), available, order)
    for number, (name, content) in enumerate(order.items()):
        (made / "modules" / f"{number:02}-{name}.ko").write_bytes(content)


def _load(name: str, available: Mapping[str, Path], order: dict[str, bytes]) -> None:
    """Put a module into the order, behind those it needs."""
    if name in order:
        return
    if name not in available:
        raise UserError(f"the kernel package has no module {name}; this version of it is of no use here")
    content = available[name].read_bytes()
    if available[name].suffix == ".xz":
        content = lzma.decompress(content)
    if match := _DEPENDS.search(content):
        for needed in filter(None, match[1].decode().split(",")):
            _load(_name(needed), available, order)
    order[name] = content


def _name(module: str) -> str:
    """A module's name as the kernel has it; file names may have hyphens."""
    return module.replace("-", "_")
