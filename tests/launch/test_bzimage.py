"""A bzImage is read as the boot protocol says, and refused with the first reason why it cannot be entered."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import UserError
from sealift.launch.bzimage import BzImage, is_bzimage, parse

from .bzimages import VERSION, bzimage
from .kernels import HALT, Load, elf


def test_everything_a_loader_needs_is_read() -> None:
    image = bzimage()
    found = parse(image)
    assert is_bzimage(image)
    assert found == BzImage(
        header=image[0x1F1:0x26C],
        kernel=image[0x800:0x3800],
        version=VERSION,
        alignment=0x20_0000,
        fixed=None,
        init_size=0x20_0000,
        initrd_end=0x8000_0000,
        command_line_limit=2047,
    )
    assert str(found) == "Linux 6.1.0-made-up"


def test_what_follows_the_kernel_is_not_loaded() -> None:
    assert parse(bzimage(tail=b"a signature")).kernel == parse(bzimage(tail=b"")).kernel


def test_no_setup_sectors_mean_four() -> None:
    image = bzimage(setup_sects=0, syssize=0x2000 // 16)
    assert parse(image).kernel == image[5 * 512 : 5 * 512 + 0x2000]


def test_a_kernel_that_is_not_relocatable_has_one_place() -> None:
    assert parse(bzimage(relocatable_kernel=0, pref_address=0x40_0000)).fixed == 0x40_0000


@pytest.mark.parametrize("pointer", [0, 0x8000])
def test_a_version_is_only_for_people(pointer: int) -> None:
    found = parse(bzimage(kernel_version=pointer))
    assert found.version == ""
    assert str(found) == "Linux"


def test_an_unprintable_version_is_not_shown() -> None:
    image = bytearray(bzimage())
    image[0x400] = 0x1B
    assert parse(bytes(image)).version == ""


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (b"", "is not a bzImage: it has no HdrS"),
        (elf(Load(0xA0_0000, HALT)).ljust(4096, b"\0"), "is not a bzImage: it has no HdrS"),
        (bzimage(boot_flag=0), "is not a bzImage: it has no boot signature"),
        (bzimage(version=0x20B), r"has boot protocol 2\.11; 2\.12 or later is needed"),
        (bzimage(jump=0x61EB), "has a setup header that ends at 0x263"),
        (bzimage(jump=0x8FEB), "has a setup header that ends at 0x291"),
        (bzimage(loadflags=0), "is a zImage"),
        (bzimage(xloadflags=0b10), "has no 64-bit entry point"),
        (bzimage(syssize=0x200 // 16), "has 512 bytes of protected-mode kernel"),
        (bzimage(init_size=0x2FFF), "needs 12,287 bytes of memory, but loads 12,288"),
        (bzimage(kernel_alignment=0), "aligned to 0x0, which is no power of two"),
        (bzimage(kernel_alignment=0x3000), "aligned to 0x3000"),
        (bzimage(tail=b"")[:-1], "is truncated: it has 14,335 of 14,336 bytes"),
        (bzimage()[:0x240], "."),
    ],
)
def test_the_first_fault_of_a_file_is_named(image: bytes, fault: str) -> None:
    with pytest.raises(UserError, match=f"^the kernel file .*{fault}"):
        parse(image)


@given(st.lists(st.tuples(st.integers(0x1F1, 0x26B), st.integers(0, 255)), max_size=6), st.integers(0x206, 0x3800))
def test_no_header_has_another_outcome_than_a_kernel_or_a_sentence(changes: list[tuple[int, int]], size: int) -> None:
    image = bytearray(bzimage())
    for at, value in changes:
        image[at] = value
    with suppress(UserError):
        found = parse(bytes(image[:size]))
        assert len(found.kernel) <= size
