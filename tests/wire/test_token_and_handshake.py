"""Tokens and handshake messages on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import StreamError
from sealift.wire.handshake import (
    MAC_SIZE,
    MAX_BLOCKS,
    MAX_EXCLUDED,
    MAX_MESSAGE,
    Confirm,
    Hello,
    MessageKind,
    Party,
    decode_answer,
    decode_confirm,
    decode_offer,
    transcript,
)
from sealift.wire.token import TOKEN_SIZE, Token, TokenKind, split_token

blocks = st.lists(st.tuples(st.text(min_size=1, max_size=60), st.integers(1, 9)), min_size=1, max_size=5).map(
    lambda found: RamLayout(
        tuple(RamBlock(name, Gpa(at << 32), pages * PAGE_SIZE) for at, (name, pages) in enumerate(found))
    )
)
parties = st.builds(
    Party,
    instance=st.binary(min_size=16, max_size=16),
    measure=st.binary(min_size=48, max_size=48),
    public=st.binary(min_size=32, max_size=32),
    policy=st.integers(0, (1 << 32) - 1),
    cbit=st.integers(0, 63),
    channels=st.integers(1, 16),
    vcpus=st.integers(1, 4096),
    mailbox_gpa=st.integers(0, (1 << 52) - 1),
    layout=blocks,
    excluded=st.lists(st.integers(0, (1 << 40) - 1), max_size=8).map(tuple),
)
ids = st.binary(min_size=16, max_size=16)


def party(blocks: int = 1, excluded: int = 0) -> Party:
    layout = RamLayout(tuple(RamBlock("n" * 255, Gpa(index << 32), PAGE_SIZE) for index in range(blocks)))
    return Party(bytes(16), bytes(48), bytes(32), 1, 51, 1, 1, Gpa(0), layout, tuple(range(excluded)))


@given(ids, parties)
def test_an_offer_survives_the_wire(migration: bytes, stated: Party) -> None:
    made = Hello(MessageKind.OFFER, migration, stated)
    assert decode_offer(made.encode()) == made


@given(ids, parties, st.binary(min_size=MAC_SIZE, max_size=MAC_SIZE))
def test_an_answer_survives_the_wire(migration: bytes, stated: Party, mac: bytes) -> None:
    made = Hello(MessageKind.ANSWER, migration, stated)
    found = decode_answer(made.encode() + mac)
    assert (found.hello, found.body, found.mac) == (made, made.encode(), mac)


@given(ids, st.binary(min_size=MAC_SIZE, max_size=MAC_SIZE))
def test_a_confirmation_survives_the_wire(migration: bytes, mac: bytes) -> None:
    made = Confirm(migration, mac)
    assert decode_confirm(made.encode()) == made


@given(st.binary(max_size=400))
def test_noise_is_a_stream_error(noise: bytes) -> None:
    for decode in (decode_offer, decode_answer, decode_confirm, split_token):
        with pytest.raises(StreamError):
            decode(noise)


@given(st.data(), parties)
def test_an_edited_offer_parses_or_is_a_stream_error(data: st.DataObject, stated: Party) -> None:
    """Test that no byte of an offer can make the parser fail in another way."""
    encoded = bytearray(Hello(MessageKind.OFFER, bytes(16), stated).encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode_offer(bytes(encoded))
    except StreamError:
        return


def test_bytes_behind_a_message_are_refused() -> None:
    with pytest.raises(StreamError, match="1 bytes too many"):
        decode_offer(Hello(MessageKind.OFFER, bytes(16), party()).encode() + b"\0")


def test_the_longest_message_is_within_the_limit_and_longer_tables_are_refused() -> None:
    longest = Hello(MessageKind.ANSWER, bytes(16), party(MAX_BLOCKS, MAX_EXCLUDED)).encode() + bytes(MAC_SIZE)
    assert len(longest) == MAX_MESSAGE
    decode_answer(longest)
    for over in (party(MAX_BLOCKS + 1), party(1, MAX_EXCLUDED + 1)):
        with pytest.raises(StreamError, match="over the limit"):
            decode_offer(Hello(MessageKind.OFFER, bytes(16), over).encode())


def test_the_transcript_tells_where_one_message_ends() -> None:
    assert transcript(b"ab", b"c") != transcript(b"a", b"bc")


@given(st.sampled_from(TokenKind), ids, st.binary(min_size=32, max_size=32))
def test_a_token_survives_the_wire(kind: TokenKind, migration: bytes, digest: bytes) -> None:
    made = Token(kind, migration, digest)
    encoded = made.body() + b"m" * 32
    assert len(encoded) == TOKEN_SIZE
    assert split_token(encoded) == (made, b"m" * 32)


@pytest.mark.parametrize(("place", "value", "reason"), [(0, 0, "magic"), (4, 2, "version 2"), (6, 0, "kind 0")])
def test_another_token_version_or_kind_is_refused(place: int, value: int, reason: str) -> None:
    encoded = bytearray(Token(TokenKind.FINAL, bytes(16), bytes(32)).body() + bytes(32))
    encoded[place] = value
    with pytest.raises(StreamError, match=reason):
        split_token(bytes(encoded))
