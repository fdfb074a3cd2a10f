"""Kernels are found, unpacked and kept, with the modules they must load in an order that works."""

from __future__ import annotations

import lzma
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealift.cli.linux import kernels, packages
from sealift.cli.linux.cache import cached
from sealift.cli.linux.image import SERIES
from sealift.cli.linux.kernels import KernelWish, kernel
from sealift.errors import UserError

WISH = KernelWish(r"linux-image-6\.1\.0-[0-9]+-tiny", ("disk-driver", "console", "built_in"))


def module(name: str, depends: str = "") -> bytes:
    """What matters of a module file."""
    return f"\x7fELF…\0name={name}\0depends={depends}\0vermagic=6\0".encode()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sealift"


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages that were downloaded, from a repository that has two."""
    downloaded: list[str] = []

    @contextmanager
    def unpacked(package: str) -> Iterator[Path]:
        downloaded.append(package)
        tree = tmp_path / "tree"
        release = package.removeprefix("linux-image-")
        drivers = tree / "lib" / "modules" / release / "kernel" / "drivers"
        drivers.mkdir(parents=True)
        (tree / "boot").mkdir()
        (tree / "boot" / f"vmlinuz-{release}").write_bytes(b"a kernel")
        (drivers.parent.parent / "modules.builtin").write_text("kernel/lib/built-in.ko\n")
        (drivers / "disk_driver.ko.xz").write_bytes(lzma.compress(module("disk_driver", "bus,queue-core")))
        (drivers / "queue-core.ko").write_bytes(module("queue_core"))
        (drivers / "bus.ko").write_bytes(module("bus", "queue-core"))
        (drivers / "console.ko").write_bytes(module("console", "bus"))
        (drivers / "unwanted.ko").write_bytes(module("unwanted"))
        yield tree

    listed = "linux-image-6.1.0-9-tiny - older\nlinux-image-6.1.0-47-tiny - newer\n"
    monkeypatch.setattr(packages, "_run", lambda *_: listed)
    monkeypatch.setattr(kernels, "unpacked", unpacked)
    return downloaded


def test_modules_come_after_those_they_need_and_built_in_ones_not_at_all(downloads: list[str]) -> None:
    found = kernel(WISH)
    assert found.vmlinuz.read_bytes() == b"a kernel"
    assert [path.name for path in found.modules] == [
        "00-queue_core.ko",
        "01-bus.ko",
        "02-disk_driver.ko",
        "03-console.ko",
    ]
    assert found.modules[2].read_bytes() == module("disk_driver", "bus,queue-core")
    assert downloads == ["linux-image-6.1.0-47-tiny"]


def test_a_kernel_in_the_cache_is_used_without_asking_anybody(
    downloads: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kernel(WISH)
    monkeypatch.setenv("PATH", "/nowhere")
    cache.chmod(0o500)
    assert kernel(WISH) == first
    assert len(downloads) == 1


def test_another_list_of_modules_is_another_kernel(downloads: list[str], tmp_path: Path) -> None:
    kernel(WISH)
    (tmp_path / "tree").rename(tmp_path / "old tree")
    assert len(kernel(KernelWish(WISH.package, ("console",))).modules) == 3
    assert len(downloads) == 2


@pytest.mark.usefixtures("downloads")
def test_a_module_that_is_nowhere_is_said_so_and_nothing_is_kept(cache: Path) -> None:
    with pytest.raises(UserError, match="no module nothing"):
        kernel(KernelWish(WISH.package, ("nothing",)))
    assert [path.suffix for path in (cache / "kernels").iterdir()] == [".lock"]


def test_a_machine_without_apt_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match="needs apt-cache, which is not here"):
        kernel(WISH)


def test_an_apt_that_knows_no_such_package_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "tool", lambda *_: "apt-cache")
    monkeypatch.setattr(packages, "_run", lambda *_: "")
    with pytest.raises(UserError, match=r"apt knows no package .*tiny.*apt-get update"):
        kernel(WISH)


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ("6.1", "linux-image-6.1.0-56-cloud-amd64"),
        ("6.12", "linux-image-6.12.111+deb12-cloud-amd64"),
        ("6.12", "linux-image-6.12.38+deb13-cloud-amd64"),
    ],
)
def test_debians_names_are_those_that_are_looked_for(series: str, name: str) -> None:
    matching = [key for key, wish in SERIES.items() if re.fullmatch(wish.package, name)]
    assert matching == [series]
    assert not re.fullmatch(SERIES[series].package, f"{name}-unsigned")


def test_two_that_need_the_same_fill_it_once(cache: Path) -> None:
    filled: list[str] = []
    begun = threading.Event()

    def fill(made: Path) -> None:
        begun.set()
        threading.Event().wait(0.2)
        filled.append(made.name)
        (made / "content").write_text("whole")

    def ask() -> None:
        assert (cached("kernels/one", fill) / "content").read_text() == "whole"

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
        begun.wait(20)
    for thread in threads:
        thread.join()
    assert len(filled) == 1
    assert sorted(path.name for path in (cache / "kernels").iterdir()) == ["one", "one.lock"]
