"""docs/cpu-and-firmware.md is true: every command in it is run, and must answer what the page shows."""

from __future__ import annotations

from pathlib import Path

import judges
from pages import Shell, steps

PAGE = Path(__file__).parents[2] / "docs" / "cpu-and-firmware.md"


def test_the_page_shows_every_kind_of_answer() -> None:
    commands = " ".join(step.command for step in steps(PAGE))
    for tool in ("show", "levels", "baseline", "compare"):
        assert f"sealift cpu {tool}" in commands
    for tool in ("list", "select", "validate", "inspect"):
        assert f"sealift firmware {tool}" in commands


def test_every_command_answers_what_the_page_shows(shell: Shell) -> None:
    judges.file(Path("/usr/share/qemu/firmware/60-edk2-x86_64.json"), "ovmf")
    for step in steps(PAGE):
        assert shell(step.command)[1] == step.shown, step.command
