"""docs/handover.md is true: its tables are the code's, and its commands answer what it shows but for figures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest

from harness import PATIENCE_S, Sealift
from migration.handover_page import PAGE, page_with, written_part
from pages import Shell, steps

from .test_migration_page import spoken

_HEX = re.compile(r"\b[0-9a-f]{32,}\b")


def test_the_tables_are_those_of_the_code() -> None:
    assert PAGE.read_text("utf-8") == page_with(written_part()), "run python -m migration.handover_page"


def told(text: str) -> list[str]:
    """What was said, but for figures and identities."""
    return spoken(_HEX.sub("<hexadecimal>", text))


@pytest.mark.timeout(6 * PATIENCE_S)
def test_every_command_answers_what_the_page_shows(sealift: Callable[..., Sealift], shell: Shell) -> None:
    hosts: dict[str, Sealift] = {}
    between: list[tuple[Sealift, str]] = []
    for step in steps(PAGE):
        arguments = shlex.split(step.command)[1:]
        match arguments[0]:
            case "run":
                if step.command in hosts:
                    hosts[step.command].wait()  # the reader sees that it has ended
                hosts[step.command] = sealift(*arguments)
                hosts[step.command].stderr.wait_for(step.shown.splitlines()[-1])
            case "tamper":
                between.append((sealift(*arguments), step.shown))
                between[-1][0].stderr.wait_for("with seed")
            case _:
                status, output = shell(step.command)
                assert told(output) == told(step.shown), step.command
                assert status == int("worst moment" in output or "was not moved" in output), step.command
    assert len(between) == 3
    for process, shown in between:
        assert process.wait() == 0
        assert told(process.stderr.text + process.stdout.text) == told(shown)
