"""docs/threat-model.md lists the attacks that are tested, and no other."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from hostile.threat_model import GAINS, PAGE, SUBJECTS, _attack, attacks, page_with, written_part


def test_the_page_lists_every_marked_test_and_no_other() -> None:
    assert PAGE.read_text("utf-8") == page_with(written_part(list(attacks()))), "run python -m hostile.threat_model"


def test_there_are_forty_attacks_or_more_and_some_on_everything() -> None:
    found = Counter(attack.subject for attack in attacks())
    assert found.total() >= 40
    assert set(found) == set(SUBJECTS)


def test_every_kind_of_gain_is_explained() -> None:
    head = PAGE.read_text("utf-8").partition("## The attacks")[0]
    for gain in GAINS:
        assert f"**{gain}**" in head


@pytest.mark.parametrize(
    "mark",
    [
        "attack('records', 'drops one')",
        "attack('nonsense', 'drops one', gains='nothing')",
        "attack('records', 'drops one', gains='everything')",
        "attack('records', WHAT, gains='nothing')",
        "attack('records', 'drops one', gains='nothing', more=1)",
    ],
)
def test_a_marker_that_says_too_little_is_refused(mark: str) -> None:
    with pytest.raises(ValueError, match="write attack"):
        _attack(ast.parse(mark, mode="eval").body, "tests/test_x.py::test_y")
