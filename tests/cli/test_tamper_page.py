"""docs/tamper.md is true: every command in it is run, and must answer what the page shows but for figures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift
from pages import Shell, steps
from sealift.tamper.rules import parse

from .test_migration_page import spoken

PAGE = Path(__file__).parents[2] / "docs" / "tamper.md"


@pytest.mark.timeout(6 * PATIENCE_S)
def test_every_command_answers_what_the_page_shows(sealift: Callable[..., Sealift], shell: Shell) -> None:
    hosts: dict[str, Sealift] = {}
    between: list[tuple[Sealift, str]] = []
    for step in steps(PAGE):
        arguments = shlex.split(step.command)[1:]
        lines = step.shown.splitlines()
        match arguments[0]:
            case "run":
                if step.command in hosts:
                    hosts[step.command].wait()  # the reader sees that it has ended
                hosts[step.command] = sealift(*arguments)
                hosts[step.command].stderr.wait_for(lines[-1])
            case "tamper":
                process = sealift(*arguments)
                process.stderr.wait_for(lines[0])
                between.append((process, step.shown))
            case _:
                if arguments[:2] == ["token", "export"]:
                    hosts["sealift run --name demo --host b --incoming unix:b.sock"].stderr.wait_for(
                        "bring it the token"
                    )
                status, output = shell(step.command)
                assert spoken(output) == spoken(step.shown), step.command
                assert status == int("sealift: " in output), step.command
    assert between
    for process, shown in between:
        assert process.wait() == 0
        assert spoken(process.stderr.text + process.stdout.text) == spoken(shown)


def test_every_rule_in_the_table_is_one() -> None:
    rules = re.findall(r"^\| `(\w+:[^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(rules) >= 10
    for rule in rules:
        assert parse(rule).text == rule
