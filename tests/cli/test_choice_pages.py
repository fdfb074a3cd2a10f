"""docs/cpu-models.md and docs/firmware.md are true: every command is run, and must answer what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

import judges
from pages import Shell, steps

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "cpu-models.md": (
        "cpu show",
        "cpu levels",
        "cpu baseline",
        "cpu compare",
        "run --type plain --engine unicorn --cpu",
    ),
    "firmware.md": ("firmware list", "firmware select", "firmware validate", "firmware inspect"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_every_kind_of_answer(page: str) -> None:
    commands = " ".join(step.command for step in steps(DOCS / page))
    for tool in PAGES[page]:
        assert f"sealift {tool}" in commands


@pytest.mark.parametrize("page", PAGES)
def test_every_command_answers_what_the_page_shows(shell: Shell, page: str) -> None:
    judges.file(Path("/usr/share/qemu/firmware/60-edk2-x86_64.json"), "ovmf")
    for step in steps(DOCS / page):
        assert shell(step.command)[1] == step.shown, step.command
