"""Kernels are found, unpacked and kept, with the modules they must load in an order that works."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealift.cli.linux import image, initramfs, kernels, packages
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
    asked: list[str] = []

    def run(command: list[str], *_: object) -> str:
        asked.append(command[1])
        return ""

    monkeypatch.setattr(packages, "_run", run)
    for user, steps in ((1000, ["search"]), (0, ["search", "update", "search"])):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        asked.clear()
        with pytest.raises(UserError, match=r"apt knows no package .*tiny.*apt-get update"):
            kernel(WISH)
        assert asked == steps


def test_root_has_apt_fetch_its_lists_when_it_knows_no_such_package(
    downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [""]

    def run(command: list[str], *_: object) -> str:
        if command[1] == "update":
            lists[0] = "linux-image-6.1.0-47-tiny - found\n"
        return lists[0]

    monkeypatch.setattr(packages, "tool", lambda name, _: name)
    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kernel(WISH)
    assert downloads == ["linux-image-6.1.0-47-tiny"]


def test_without_debian_12s_kernel_the_next_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(wish: KernelWish) -> kernels.Kernel:
        if wish == SERIES["6.1"]:
            raise UserError("apt knows no package of 6.1")
        return kernels.Kernel(Path(wish.package), ())

    monkeypatch.setattr(image, "kernel", found)
    assert image.guest_kernel().vmlinuz == Path(SERIES["6.12"].package)
    with pytest.raises(UserError, match=r"of 6\.1"):
        image.guest_kernel("6.1")
    with pytest.raises(UserError, match="no Linux guest of series '7'"):
        image.guest_kernel("7")


def test_a_busybox_that_needs_libraries_is_not_taken_but_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    @contextmanager
    def unpacked(package: str) -> Iterator[Path]:
        fetched.append(package)
        (tmp_path / "tree" / "bin").mkdir(parents=True)
        (tmp_path / "tree" / "bin" / "busybox").write_bytes(b"static")
        yield tmp_path / "tree"

    monkeypatch.setattr(shutil, "which", lambda *_: sys.executable)
    monkeypatch.setattr(initramfs, "unpacked", unpacked)
    monkeypatch.setattr(initramfs, "_is_static", lambda program: program == b"static")
    for _ in range(2):
        assert initramfs.busybox().read_bytes() == b"static"
    assert fetched == ["busybox-static"]


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ("6.1", "linux-image-6.1.0-56-cloud-amd64"),
        ("6.12", "linux-image-6.12.111+deb12-cloud-amd64"),
        ("6.12", "linux-image-6.12.38+deb13-cloud-amd64"),
        ("6.12", "linux-image-6.12.12+bpo-cloud-amd64"),
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
