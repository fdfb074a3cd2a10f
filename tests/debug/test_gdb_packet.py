"""Frames of gdb's remote protocol, however they are cut, and whatever else comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sealift.vmm.gdb.packet import PACKET_LIMIT, Parser, Signal, framed


@given(contents=st.lists(st.binary(max_size=60), max_size=5), cut=st.integers(1, 20))
def test_what_was_framed_is_found_however_the_stream_is_cut(contents: list[bytes], cut: int) -> None:
    stream = b"+".join(framed(content) for content in contents)
    parser = Parser()
    found = [each for at in range(0, len(stream), cut) for each in parser.feed(stream[at : at + cut])]
    assert found == contents


@given(rubbish=st.lists(st.binary(max_size=40), max_size=8))
def test_rubbish_is_survived(rubbish: list[bytes]) -> None:
    """Whatever came before, a packet behind the end of the last one is found."""
    parser = Parser()
    for part in rubbish:
        parser.feed(part)
    parser.feed(b"#00")
    assert parser.feed(framed(b"qC"))[-1] == b"qC"


def test_a_wrong_checksum_and_a_packet_too_long_are_damaged() -> None:
    parser = Parser()
    assert parser.feed(b"$qC#00") == [Signal.DAMAGED]
    assert parser.feed(b"$" + b"0" * (PACKET_LIMIT + 1)) == []
    assert parser.feed(b"0#00") == [Signal.DAMAGED]
    assert parser.feed(framed(b"?")) == [b"?"]


def test_ctrl_c_comes_between_packets_alone() -> None:
    assert Parser().feed(b"+\x03" + framed(b"X\x03")) == [Signal.INTERRUPT, b"X\x03"]
