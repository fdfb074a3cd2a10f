from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import locks
from sealift.errors import UserError
from sealift.privatefiles import Access, PrivateDirectory


@pytest.fixture
def directory(tmp_path: Path) -> PrivateDirectory:
    return PrivateDirectory(tmp_path / "deep" / "keys", "test")


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_is_private(directory: PrivateDirectory) -> None:
    directory.write("key", b"secret")
    directory.append("log", "one line")
    with directory.locked(Access.CHANGE):
        assert _mode(directory.path) == 0o700
        assert {_mode(path) for path in directory.path.iterdir()} == {0o600}
    assert directory.names() == ["key", "log"]


def test_a_file_reads_back_and_is_replaced_whole(directory: PrivateDirectory) -> None:
    directory.write("key", b"first, and longer")
    directory.write("key", b"second")
    assert directory.read("key", 100) == b"second"
    assert directory.names() == ["key"]


def test_a_failed_write_leaves_the_old_content_and_no_debris(
    directory: PrivateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError("no space left on device")

    directory.write("key", b"old")
    monkeypatch.setattr("sealift.privatefiles.os.fsync", fail)
    with pytest.raises(UserError, match="cannot be written"):
        directory.write("key", b"new")
    assert directory.read("key", 100) == b"old"
    assert [path.name for path in directory.path.iterdir()] == ["key"]


def test_an_open_directory_is_refused_and_the_way_out_named(directory: PrivateDirectory) -> None:
    directory.path.chmod(0o750)
    with pytest.raises(UserError, match=rf"mode 0750.*chmod 700 {directory.path}"):
        PrivateDirectory(directory.path, "test")


def test_an_open_file_is_refused(directory: PrivateDirectory) -> None:
    directory.write("key", b"secret")
    (directory.path / "key").chmod(0o604)
    with pytest.raises(UserError, match="chmod 600"):
        directory.read("key", 100)
    (directory.path / "log").touch(0o622)
    (directory.path / "log").chmod(0o622)
    with pytest.raises(UserError, match="open to other users"):
        directory.append("log", "line")


def test_links_are_not_followed(directory: PrivateDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"not ours")
    (directory.path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be read"):
        directory.read("key", 100)


def test_missing_and_oversized_files_have_sentences(directory: PrivateDirectory) -> None:
    with pytest.raises(UserError, match="has no file key"):
        directory.read("key", 100)
    directory.write("key", bytes(101))
    with pytest.raises(UserError, match="larger than the 100 bytes"):
        directory.read("key", 100)


def test_a_file_in_the_way_of_the_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used"):
        PrivateDirectory(tmp_path / "file" / "keys", "test")


def test_users_share_the_lock_and_a_change_excludes_them(directory: PrivateDirectory) -> None:
    first, second = directory.hold(Access.USE), directory.hold(Access.USE)
    assert directory.in_use()
    assert directory.try_change() is None
    assert directory.try_change(first) is None, "the other one is in its way"
    second.release()
    assert directory.try_change(first) is first
    assert not locks.free(directory.path)
    first.release()
    first.release()
    assert not directory.in_use()


def test_a_dead_process_holds_no_lock(directory: PrivateDirectory) -> None:
    program = (
        "import sys, pathlib, os\n"
        "from sealift.privatefiles import Access, PrivateDirectory\n"
        "held = PrivateDirectory(pathlib.Path(sys.argv[1]), 'test').hold(Access.CHANGE)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(9)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(directory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert not locks.free(directory.path)
        child.stdin.close()
        child.wait(timeout=20)
        assert not directory.in_use()
