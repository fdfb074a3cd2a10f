"""The committed programs are what their sources make."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

import judges
from sealift.errors import UserError
from sealift.guest.programs import linux_program, program, program_names, startup_blob
from sealift.launch.secrets import GUEST_GUID

SOURCES = Path(str(files("sealift.guest.programs")))
OUTPUTS = ("startup.bin", "ledger.elf", "idle.elf", "writer.elf", "linuxload")


def tools(provenance: Path) -> list[str]:
    """The lines that name compiler and linker."""
    return re.findall(r"^- (?:compiler|linker): .+$", provenance.read_text(), re.MULTILINE)


def build(sources: Path, out: Path) -> None:
    """Run build.mk, quietly."""
    out.mkdir()
    make = judges.program("make", "make")
    judges.program("gcc", "gcc")
    done = subprocess.run(
        [make, "-s", "-C", str(sources), "-f", "build.mk", f"OUT={out}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_committed_programs_are_those_that_provenance_names() -> None:
    recorded = dict(re.findall(r"^\| ([0-9a-f]{64}) \| (\S+) \|$", (SOURCES / "PROVENANCE.md").read_text(), re.M))
    assert recorded == {hashlib.sha256((SOURCES / name).read_bytes()).hexdigest(): name for name in OUTPUTS}
    assert len(tools(SOURCES / "PROVENANCE.md")) == 2


def test_a_rebuild_by_the_recorded_tools_gives_the_committed_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(SOURCES, out)
    here, recorded = tools(out / "PROVENANCE.md"), tools(SOURCES / "PROVENANCE.md")
    if here != recorded:
        pytest.skip(f"NOT COMPARED: the committed programs were built by {recorded}, here are {here}")
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (SOURCES / name).read_bytes(), name


def test_the_bytes_depend_neither_on_the_folder_nor_on_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "a copy of the sources"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("*.elf", "*.bin", "linuxload", "PROVENANCE.md"))
    build(SOURCES, tmp_path / "one")
    build(copy, tmp_path / "other")
    for name in OUTPUTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


def test_programs_are_found_by_name() -> None:
    assert program_names() == ("idle", "ledger", "writer")
    assert program("idle").startswith(b"\x7fELF")
    assert startup_blob() == (SOURCES / "startup.bin").read_bytes()
    with pytest.raises(UserError, match="idle, ledger, writer"):
        program("nothing")


def test_guests_know_the_guid_under_which_owners_plant_data() -> None:
    assert GUEST_GUID.bytes_le in program("ledger")
    assert GUEST_GUID.bytes_le in linux_program()
