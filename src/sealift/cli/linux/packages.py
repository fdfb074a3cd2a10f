"""Debian packages that are looked into, not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sealift.errors import UserError

T = TypeVar("T")


def tool(name: str, package: str) -> str:
    """The path of a program that this machine must have.

    Raises:
        UserError: it has not; the message names the Debian package that brings it.
    """
    # Debian keeps some tools where only root's PATH leads.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise UserError(f"this needs {name}, which is not here; on Debian: apt-get install {package}")
    return path


def newest(pattern: str) -> str:
    """The package with the highest numbers in its name, of those whose whole name matches.

    Raises:
        UserError: this machine has no apt, or its apt knows no such package.
    """
    cache = tool("apt-cache", "apt")

    def look() -> str:
        listed = _run([cache, "search", "--names-only", f"^{pattern}$"])
        names = [line.split()[0] for line in listed.splitlines()]
        if not names:
            raise UserError(
                f"apt knows no package {pattern}; it is Debian's, and `apt-get update` must have been run once"
            )
        return max(names, key=numbers)

    return _with_fresh_lists(look)


def numbers(name: str) -> tuple[int, ...]:
    """The numbers in a name, by which versions are ordered."""
    return tuple(int(number) for number in re.findall(r"\d+", name))


@contextmanager
def unpacked(package: str) -> Iterator[Path]:
    """Download a package and unpack its files; they are gone afterwards.

    Raises:
        UserError: that fails; the message has apt's reason.
    """
    with tempfile.TemporaryDirectory(prefix="sealift-package-") as scratch:
        get = tool("apt-get", "apt")
        _with_fresh_lists(lambda: _run([get, "download", package], scratch))
        (archive,) = Path(scratch).glob("*.deb")
        tree = Path(scratch) / "tree"
        _run([tool("dpkg-deb", "dpkg"), "--extract", str(archive), str(tree)])
        yield tree


def _with_fresh_lists(ask: Callable[[], T]) -> T:
    """What apt answers; root has it fetch its lists of packages if it does not know, or they are too old."""
    try:
        return ask()
    except UserError:
        if os.geteuid() != 0:
            raise
        _run([tool("apt-get", "apt"), "update"])
        return ask()


def _run(command: Sequence[str], directory: str | None = None) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [f"exit {done.returncode}"]
        raise UserError(f"`{' '.join(command)}` failed: {said[-1].removeprefix('E: ')}")
    return done.stdout
