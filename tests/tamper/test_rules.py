"""Rules: what can be written is read as it is meant, and what cannot be is answered with the part that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import UserError
from sealift.tamper.messages import BYTES, KINDS, Side
from sealift.tamper.rulebook import Rulebook
from sealift.tamper.rules import Chances, Rule, Selector, Verb, parse
from sealift.wire.record import MAX_CHANNELS

NAMES = sorted(set(KINDS) - {BYTES})


@st.composite
def selectors(draw: st.DrawFn) -> tuple[str, Selector]:
    """A message as it is written, and as it is meant."""
    name = draw(st.sampled_from(NAMES))
    side = KINDS[name].side
    assert side is not None
    text = draw(st.sampled_from(["", f"{side.value}>"])) + name
    channel = draw(st.integers(0, MAX_CHANNELS - 1))
    if channel or draw(st.booleans()):
        text += f"/{channel}"
    match draw(st.sampled_from(["first", "one", "range", "each"])):
        case "first":
            return text, Selector(side, name, channel)
        case "one":
            number = draw(st.integers(1, 10**9))
            return f"{text}#{number}", Selector(side, name, channel, number, number)
        case "range":
            low, high = sorted(draw(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))))
            return f"{text}#{low}..{high}", Selector(side, name, channel, low, high)
        case _:
            return f"{text}#*", Selector(side, name, channel, 1, None)


@given(selectors(), st.sampled_from([Verb.DROP, Verb.REPEAT, Verb.CUT, Verb.FLIP]))
def test_a_message_is_read_as_it_is_meant(written: tuple[str, Selector], verb: Verb) -> None:
    text, meant = written
    assert parse(f"{verb.value}:{text}") == Rule(f"{verb.value}:{text}", verb, meant)
    assert parse(f"drop:{meant}").what == meant


@given(selectors(), st.integers(0, 10**9), st.sampled_from(["bit", "byte"]))
def test_a_place_is_read_as_it_is_meant(written: tuple[str, Selector], number: int, unit: str) -> None:
    rule = parse(f"flip:{written[0]}@{unit}={number}")
    assert (rule.what, rule.bit, rule.byte) == (
        written[1],
        *((number, None) if unit == "bit" else (None, number)),
    )


@given(selectors(), st.integers(0, 3_600_000))
def test_a_time_is_read_as_it_is_meant(written: tuple[str, Selector], milliseconds: int) -> None:
    assert parse(f"delay:{written[0]}={milliseconds}ms").pause_s == pytest.approx(milliseconds / 1e3)
    assert parse(f"delay:{written[0]}={milliseconds / 1e3:.3f}s").pause_s == pytest.approx(milliseconds / 1e3)


def test_two_messages_change_places() -> None:
    rule = parse("reorder:record/2#4,source>record/2#7")
    assert rule.what == Selector(Side.SOURCE, "record", 2, 4, 4)
    assert rule.behind == Selector(Side.SOURCE, "record", 2, 7, 7)


def test_bytes_are_anybodys() -> None:
    rule = parse("delay:target>bytes@byte=9=50ms")
    assert (rule.what.side, rule.byte, rule.pause_s) == (Side.TARGET, 9, 0.05)
    assert parse("flip:source>bytes@bit=77").bit == 77


@given(st.text())
def test_whatever_is_written_is_a_rule_or_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="rule "):
        parse(text)


@given(st.text("dropcutfli:#@=>/.,*0123456789 recsoubyt", max_size=40))
def test_what_looks_like_a_rule_is_one_or_a_sentence(text: str) -> None:
    try:
        rule = parse(text)
    except UserError as error:
        assert str(error).startswith(f"rule {text!r}: ")  # noqa: PT017  # most of them fail, and some do not
    else:
        assert rule.text == text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "'' is nothing that can be done"),
        ("burn:final", "'burn' is nothing that can be done to a message; that is one of drop, delay,"),
        ("drop", "write drop:MESSAGE"),
        ("drop:recrod", "no message 'recrod'; did you mean record"),
        ("drop:final/16", "no channel 16; they are 0 to 15"),
        ("drop:final/x", "'x' is no channel"),
        ("drop:record#0", "'0' is no number of a message; these count from 1"),
        ("drop:record#5..3", "'5..3' is no range"),
        ("drop:record#", "'' is no number"),
        ("drop:host>final", "'host' is no side"),
        ("drop:target>final", "final is never sent by the target, but by the source"),
        ("drop:bytes", r"who sends these bytes\? write source>bytes"),
        ("drop:source>bytes@byte=7", "drop needs a message that is understood"),
        ("flip:source>bytes", "write @byte=N"),
        ("cut:source>bytes#2@byte=7", "neither number nor channel"),
        ("drop:record@bit=7", r"a place in it \(@bit=7\) means nothing"),
        ("flip:record@77", "'77' is no place"),
        ("flip:record@bit=x", "'x' is no bit"),
        ("cut:record@bit=7", "no use for a single bit"),
        ("delay:record", "write =TIME"),
        ("delay:record=soon", "'soon' is no time"),
        ("delay:record=7200s", "nobody waits for 7200s"),
        ("reorder:record#4", "write two"),
        ("reorder:record#4,started", "not on one connection"),
        ("reorder:record#4,record/1#5", "not on one connection"),
        ("reorder:record#5,record#4", "write the earlier one first"),
        ("reorder:record#*,close", "no single message"),
        ("reorder:source>bytes,close", "bytes have no order"),
    ],
)
def test_what_is_wrong_is_said(text: str, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        parse(text)


def test_a_range_is_one_message_which_the_seed_chooses() -> None:
    def chosen(seed: int) -> list[int]:
        book = Rulebook([parse("drop:record#3..20")], Chances(seed))
        return [number for number in range(1, 30) if book.due("record", Side.SOURCE, 0, number)]

    found = [chosen(seed) for seed in range(50)]
    assert all(len(numbers) == 1 and 3 <= numbers[0] <= 20 for numbers in found)
    assert len({numbers[0] for numbers in found}) > 10
    assert found == [chosen(seed) for seed in range(50)]


def test_a_rule_is_for_one_message_and_with_a_star_for_all() -> None:
    book = Rulebook([parse("drop:record#2"), parse("repeat:record#*")], Chances(0))
    due = [[each.rule.verb for each in book.due("record", Side.SOURCE, 0, number)] for number in (1, 2, 2, 3)]
    assert due == [[Verb.REPEAT], [Verb.DROP, Verb.REPEAT], [Verb.REPEAT], [Verb.REPEAT]]
    assert book.due("epoch", Side.SOURCE, 0, 2) == ()
    assert [each.rule.verb for each in book.due("record", Side.SOURCE, 3, 9)] == [Verb.REPEAT]
