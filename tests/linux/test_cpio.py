"""File systems for Linux's start are archives that others can read, and the same bytes from the same inputs."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import judges
from sealift.cli.linux.cpio import Archive


def archive() -> Archive:
    """A small one, with contents of odd lengths."""
    made = Archive()
    made.directory("bin")
    made.program("bin/tool", b"#!/bin/sh\n")
    made.file("notes", b"x" * 4097)
    made.file("empty", b"")
    return made


def test_the_same_files_give_the_same_bytes() -> None:
    assert archive().compressed() == archive().compressed()
    other = archive()
    other.file("more", b"")
    assert other.compressed() != archive().compressed()


def test_cpio_reads_what_was_written(tmp_path: Path) -> None:
    cpio = judges.program("cpio", "cpio")
    data = gzip.decompress(archive().compressed())
    subprocess.run([cpio, "--extract", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin" / "tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "notes").read_bytes() == b"x" * 4097
    assert (tmp_path / "notes").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "empty").read_bytes() == b""
