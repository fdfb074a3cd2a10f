"""An owner's files: read with a sentence for whatever is wrong, written whole, never over another."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import UserError
from sealift.owner import files
from sealift.owner.files import OutputFile

LIKE_AN_ANSWER = st.binary(max_size=200).map(lambda data: b'{"data": "' + data + b'"}')


@given(content=st.binary(max_size=300) | LIKE_AN_ANSWER)
def test_whatever_is_in_a_file_is_a_value_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "blob"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert len(files.read_blob("blob", path, {48})) == 48


@pytest.mark.parametrize("content", [b'{"x":' + b"[" * 4000, b'{"data": "\xff"}', b"{", b'{"data": 1}'])
def test_what_only_looks_like_qmps_answer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answer"
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not parse") as refused:
        files.read_blob("measurement", path, {48})
    assert "looks like QMP's answer, but has no data" in str(refused.value.__cause__)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(5000))
    with pytest.raises(UserError, match="has more than the 4096 bytes"):
        files.read_blob("TIK", path, {16})


def test_modes_follow_the_mask_for_public_files_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        outputs = [OutputFile(tmp_path / "public", b"p"), OutputFile(tmp_path / "secret", b"s", secret=True)]
        files.write(outputs, replace=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_all_are_written_or_none(tmp_path: Path) -> None:
    """Test that a second file that cannot be written takes the first one along."""
    outputs = [OutputFile(tmp_path / "first", b"1"), OutputFile(tmp_path / "missing" / "second", b"2")]
    with pytest.raises(UserError, match=r"missing/second cannot be written"):
        files.write(outputs, replace=False)
    assert list(tmp_path.iterdir()) == []


NAMES = ("vm_godh.b64", "vm_session.b64", "vm_tek.bin", "vm_tik.bin")
SECRET = frozenset(NAMES[2:])


def a_set(directory: Path, content: bytes) -> list[OutputFile]:
    return [OutputFile(directory / name, content, secret=name in SECRET) for name in NAMES]


def there(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def spoil(monkeypatch: pytest.MonkeyPatch, step: str, turn: int, end: Callable[[], None]) -> None:
    """Have `end` in the place of the `turn`th time that a step is taken, if it comes to that."""
    owner = {"mkstemp": tempfile, "write": os, "fsync": os}.get(step, Path)
    name = "fdopen" if step == "write" else step
    original, left = getattr(owner, name), iter(range(turn, -1, -1))

    def spoiled(*arguments: Any, **options: Any) -> Any:
        if next(left, -1) == 0:
            end()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, spoiled)


def fail() -> None:
    raise OSError(errno.EIO, "the medium failed")


FRESH = [(step, turn, False) for step in ("mkstemp", "write", "fsync", "hardlink_to") for turn in range(len(NAMES))]
REPLACING = [(step, turn, True) for step in ("mkstemp", "write", "fsync") for turn in range(len(NAMES))]
REPLACING += [("rename", turn, True) for turn in range(2 * len(NAMES))]
"""Every step with its turns: those to be replaced are renamed, and so are those that replace them."""


@pytest.mark.parametrize(("step", "turn", "replace"), FRESH + REPLACING)
def test_whatever_fails_everything_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, turn: int, *, replace: bool
) -> None:
    if replace:
        files.write(a_set(tmp_path, b"old"), replace=False)
    before = there(tmp_path)
    with monkeypatch.context() as patched:
        spoil(patched, step, turn, fail)
        with pytest.raises(UserError, match=r"cannot be (written|replaced)"):
            files.write(a_set(tmp_path, b"new"), replace=replace)
    assert there(tmp_path) == before


def test_a_signal_waits_until_all_files_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "hardlink_to", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        files.write(a_set(tmp_path, b"new"), replace=False)
    assert there(tmp_path) == dict.fromkeys(NAMES, b"new")


def test_a_signal_before_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "mkstemp", 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        files.write(a_set(tmp_path, b"new"), replace=False)
    assert there(tmp_path) == {}


@pytest.mark.parametrize(
    ("step", "turn", "replace"), FRESH + REPLACING + [("unlink", turn, True) for turn in range(len(NAMES))]
)
def test_a_process_that_dies_leaves_no_mixture_and_no_session_without_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, turn: int, *, replace: bool
) -> None:
    """Test SIGKILL at every step: complete before or behind, else a part of the new, secrets first."""
    if replace:
        files.write(a_set(tmp_path, b"old"), replace=False)
    child = os.fork()
    if not child:
        spoil(monkeypatch, step, turn, lambda: os._exit(9))
        files.write(a_set(tmp_path, b"new"), replace=replace)
        os._exit(0)
    os.waitpid(child, 0)
    left = {name: content for name, content in there(tmp_path).items() if not name.startswith(".")}
    assert len(set(left.values())) <= 1
    if b"new" in left.values():
        assert left.keys() >= SECRET or not left.keys() - SECRET
    for path in tmp_path.iterdir():
        assert path.name not in NAMES or path.name not in SECRET or stat.S_IMODE(path.stat().st_mode) == 0o600
    files.write(a_set(tmp_path, b"again"), replace=True)
    assert {name: there(tmp_path)[name] for name in NAMES} == dict.fromkeys(NAMES, b"again")


def test_the_longest_names_there_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    for content in (b"old", b"new"):
        files.write([OutputFile(path, content)], replace=True)
    assert there(tmp_path) == {path.name: b"new"}


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """Test that --force takes away neither a directory nor a device."""
    for place in (tmp_path, Path(os.devnull)):
        with pytest.raises(UserError, match="is no regular file, and is not replaced"):
            files.write([OutputFile(place, b"x")], replace=True)


def test_a_dangling_link_is_no_free_name(tmp_path: Path) -> None:
    """Test that secrets do not go where a link, planted by another, points to."""
    link = tmp_path / "vm_tik.bin"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="exists already"):
        files.write([OutputFile(link, b"secret", secret=True)], replace=False)
    files.write([OutputFile(link, b"secret", secret=True)], replace=True)
    assert not link.is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_a_secret_is_not_shown() -> None:
    assert "hush" not in repr(OutputFile(Path("x"), b"hush", secret=True))
