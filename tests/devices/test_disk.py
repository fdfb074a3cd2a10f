"""A disk image belongs to one VMM at a time, and changes hands only on purpose."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sealift.errors import InternalError, UserError
from sealift.vmm.devices.disk import DiskImage


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    return path


def test_what_is_written_is_read_and_is_in_the_file(image: Path) -> None:
    disk = DiskImage(image, read_only=False)
    disk.lock()
    disk.write(512, b"\xee" * 1024)
    disk.flush()
    found = bytearray(2048)
    disk.read_into(0, memoryview(found))
    disk.close()
    assert disk.sectors == 8
    assert found == image.read_bytes()[:2048]
    assert found[512:1536] == b"\xee" * 1024


def test_a_second_writer_is_told_which_image_is_in_use(image: Path) -> None:
    first, second = DiskImage(image, read_only=False), DiskImage(image, read_only=False)
    first.lock()
    with pytest.raises(UserError, match=r"disk\.img is in use by another guest; stop that guest first"):
        second.lock()
    first.close()
    second.lock()
    second.close()


def test_readers_share_and_a_writer_shuts_them_out(image: Path) -> None:
    readers = [DiskImage(image, read_only=True) for _ in range(2)]
    writer = DiskImage(image, read_only=False)
    for reader in readers:
        reader.lock()
    with pytest.raises(UserError, match="in use"):
        writer.lock()
    for reader in readers:
        reader.unlock()
    writer.lock()
    with pytest.raises(UserError, match="written by another guest"):
        readers[0].lock()
    for disk in (*readers, writer):
        disk.close()


def test_a_lock_is_handed_over_and_comes_back_if_the_migration_is_aborted(image: Path) -> None:
    source, target = DiskImage(image, read_only=False), DiskImage(image, read_only=False)
    source.lock()
    source.write(0, b"from the source")
    source.flush()
    source.unlock()
    target.lock()
    found = bytearray(15)
    target.read_into(0, memoryview(found))
    assert found == b"from the source"
    target.unlock()
    source.lock()
    with pytest.raises(UserError):
        target.lock()
    source.close()
    target.close()


def test_no_io_reaches_an_image_that_is_not_locked(image: Path) -> None:
    disk = DiskImage(image, read_only=False)
    before = image.read_bytes()
    disk.lock()
    disk.unlock()
    with pytest.raises(InternalError, match="without its lock"):
        disk.write(0, b"stray")
    with pytest.raises(InternalError):
        disk.read_into(0, memoryview(bytearray(1)))
    with pytest.raises(InternalError):
        disk.flush()
    disk.close()
    assert image.read_bytes() == before


def test_an_image_that_shrank_fails_as_a_medium_does(image: Path) -> None:
    disk = DiskImage(image, read_only=True)
    disk.lock()
    image.write_bytes(bytes(512))
    with pytest.raises(OSError, match="ends early") as caught:
        disk.read_into(0, memoryview(bytearray(1024)))
    disk.close()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("size", [0, 511, 513])
def test_an_image_has_whole_sectors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    with pytest.raises(UserError, match=f"odd.img has {size} bytes"):
        DiskImage(path, read_only=True)


def test_what_cannot_be_a_disk_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.img cannot be opened"):
        DiskImage(tmp_path / "none.img", read_only=True)
    with pytest.raises(UserError, match=r"not a whole number|nothing that a disk|cannot be opened"):
        DiskImage(tmp_path, read_only=True)
