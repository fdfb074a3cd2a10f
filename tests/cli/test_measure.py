"""The owner knows from its files alone what a platform will measure, and a Linux image is launched by that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift
from launch.bzimages import VERSION, bzimage
from sealift.cli.recipes import make_recipe

SAYS_L = b"\x66\xba\xf8\x03\xb0L\xee\xb0\n\xee\xf4\xeb\xfd"
"""mov dx, 0x3f8; mov al, 'L'; out dx, al; the same with a line feed; hlt; jump back to it."""


@pytest.fixture
def linux(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options for a guest whose kernel is a bzImage that prints one letter."""
    (tmp_path / "vmlinuz").write_bytes(bzimage(SAYS_L))
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    files = ("--kernel", tmp_path / "vmlinuz", "--initrd", tmp_path / "initrd")
    return (*files, "--append", "console=ttyS0", "--memory", "32M")


def measure(sealift: Callable[..., Sealift], *options: str | Path) -> list[str]:
    process = sealift("owner", "measure", *options)
    assert process.wait() == 0, process.report()
    return process.stdout.text.splitlines()


def test_the_digest_is_alone_on_the_last_line(sealift: Callable[..., Sealift]) -> None:
    expected = make_recipe(64 << 20, 3, "ledger", None, "ws=4").launch_digest().hex()
    options = ("--kernel", "ledger", "--memory", "64M", "--vcpus", "3", "--append", "ws=4")
    assert measure(sealift, *options) == [expected]
    assert measure(sealift, *options, "--pieces")[-1] == expected


def test_every_measured_piece_is_listed(sealift: Callable[..., Sealift], linux: tuple[str | Path, ...]) -> None:
    heading, *rows, digest = measure(sealift, *linux, "--pieces")
    assert heading.split() == ["PIECE", "GPA", "SIZE", "SHA-256"]
    recipe = make_recipe(32 << 20, 2, str(linux[1]), None, "console=ttyS0", str(linux[3]))
    expected = [(f"{p.gpa:#x}", str(len(p.data)), hashlib.sha256(p.data).hexdigest()) for p in recipe.pieces()]
    assert [tuple(row.split()[-3:]) for row in rows] == expected
    assert digest == recipe.launch_digest().hex()


def test_a_program_gets_the_same_as_json(sealift: Callable[..., Sealift], linux: tuple[str | Path, ...]) -> None:
    (line,) = measure(sealift, *linux, "--json")
    found = json.loads(line)
    assert [found["digest"]] == measure(sealift, *linux)
    assert (found["machine"], found["kernel-version"], found["policy"]) == ("microvm", VERSION, 9)
    assert [piece["name"] for piece in found["pieces"]][-1] == "initrd"


def test_a_linux_image_is_measured_piece_by_piece(
    sealift: Callable[..., Sealift], linux: tuple[str | Path, ...]
) -> None:
    """The demonstration (tests/kvm) compares such a digest with what a platform measured."""
    *pieces, digest = measure(sealift, *linux, "--pieces")
    assert digest == measure(sealift, *linux)[-1]
    names = " ".join(pieces)
    for piece in ("start-up code", "start-up table", "kernel", "command line", "ACPI", "initrd"):
        assert piece in names


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--policy", "what"), "is no guest policy"),
        (("--initrd", "/proc/version"), "only Linux takes an initrd"),
        (("--kernel", "/nonexistent/vmlinuz"), "/nonexistent/vmlinuz cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_named(
    sealift: Callable[..., Sealift], options: tuple[str, str], reason: str
) -> None:
    process = sealift("owner", "measure", *options)
    assert process.wait() == 1
    assert reason in process.stderr.text
    assert process.stdout.text == ""
