"""The search finds what it should, wherever it lies; otherwise "not found" would say nothing."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.cli.demo.needles import Needle, Piece, forms_of, plant_marker, plant_secret, search

SECRET = b"0123456789abcdef" * 4


@pytest.mark.parametrize(
    "leak",
    [
        SECRET,
        SECRET[:32],
        SECRET[32:],
        SECRET.upper(),
        bytes.fromhex(SECRET.decode()),
        bytes.fromhex(SECRET.decode())[16:],
        bytes.fromhex(SECRET.decode())[::-1],
        base64.b64encode(bytes.fromhex(SECRET.decode())),
    ],
)
def test_every_form_of_a_leak_is_found_even_half_of_it(leak: bytes) -> None:
    assert list(search([Piece(0, b"-" * 100 + leak + b"-" * 100)], forms_of(SECRET)))


def test_a_place_without_a_leak_shows_none() -> None:
    assert not list(search([Piece(0, bytes(range(256)) * 100), Piece(99, SECRET[:31])], forms_of(SECRET)))


@given(before=st.integers(0, 50), cut=st.integers(0, 12), after=st.integers(0, 50))
def test_a_needle_is_found_across_the_border_of_two_pieces_with_its_address(before: int, cut: int, after: int) -> None:
    needle = Needle("needle", b"needle in hay")
    data = b"." * before + needle.data + b"." * after
    pieces = [Piece(1000, data[: before + cut]), Piece(1000 + before + cut, data[before + cut :])]
    (found,) = search(pieces, (needle,))
    assert found.at == 1000 + before
    assert str(found) == f"needle at {1000 + before:#x}"


def test_pieces_that_do_not_touch_are_not_joined() -> None:
    needle = Needle("needle", b"needle")
    assert not list(search([Piece(0, b"need"), Piece(5, b"le")], (needle,)))


def test_what_is_planted_is_fresh_and_fits_where_it_goes() -> None:
    assert plant_secret() != plant_secret()
    assert len(plant_secret()) == 64
    assert plant_marker() != plant_marker()
    assert len(plant_marker()) < 64
