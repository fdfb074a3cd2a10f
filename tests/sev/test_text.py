"""Raw files and base64 text of them are told apart by their size."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.sev.text import decode_base64, raw_or_base64


@given(st.binary(min_size=1, max_size=200))
def test_both_forms_give_the_same(data: bytes) -> None:
    for text in (base64.b64encode(data), base64.encodebytes(data), b" \n" + base64.b64encode(data) + b"\r\n"):
        assert raw_or_base64(text, {len(data)}) == data
    assert raw_or_base64(data, {len(data)}) == data


def test_a_raw_key_that_looks_like_text_is_taken_as_it_is() -> None:
    assert raw_or_base64(b"passwordpassword", {16}) == b"passwordpassword"


@pytest.mark.parametrize("text", [b"", b" ", b"abc", b"ab=c", b"a*bc", "naïve".encode(), b"YQ==YQ=="])
def test_what_is_no_base64(text: bytes) -> None:
    assert decode_base64(text) is None


def test_sizes_are_named() -> None:
    with pytest.raises(StreamError, match="32 or 48 bytes or base64 text of them are expected, not 5 bytes"):
        raw_or_base64(b"\0\1\2\3\4", {48, 32})
    with pytest.raises(StreamError, match="base64 text of 48 bytes is expected, not of 47"):
        raw_or_base64(base64.b64encode(os.urandom(47)), {48})
