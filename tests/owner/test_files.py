"""An owner's files: read with a sentence for whatever is wrong, written whole, never over another."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

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
