"""Statements of a receipt on the wire and in a file."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.owner.receipts import read_receipt
from sealift.wire.receipt import FILE_LIMIT, MAGIC, STATEMENT_SIZE, VERSION, Claims, Receipt, Side, Statement

WHOLE = Statement(
    Side.TARGET, "a1" * 16, "b2" * 16, "c3" * 48, "d4" * 48, 5, 6, (1 << 63) - 1, "e5" * 32, mac="f6" * 32
)


def test_a_statement_is_what_its_layout_says() -> None:
    expected = MAGIC + VERSION.to_bytes(2, "little") + (2).to_bytes(2, "little")
    expected += b"\xa1" * 16 + b"\xb2" * 16 + b"\xc3" * 48 + b"\xd4" * 48
    expected += b"".join(number.to_bytes(8, "little") for number in (5, 6, (1 << 63) - 1)) + b"\xe5" * 32
    assert WHOLE.body() == expected
    assert WHOLE.encode() == expected + b"\xf6" * 32
    assert len(WHOLE.encode()) == STATEMENT_SIZE
    assert Statement.decode(WHOLE.encode()) == WHOLE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bytes long, not 0"),
        (WHOLE.encode() + b"x", f"bytes long, not {STATEMENT_SIZE + 1}"),
        (b"SLTK" + WHOLE.encode()[4:], "is none of version 1"),
        (MAGIC + b"\x02\x00" + WHOLE.encode()[6:], "is none of version 1"),
        (MAGIC + b"\x01\x00\x00\x00" + WHOLE.encode()[8:], "unknown side 0"),
        (MAGIC + b"\x01\x00\x03\x00" + WHOLE.encode()[8:], "unknown side 3"),
        (WHOLE.encode()[:136] + b"\xff" * 8 + WHOLE.encode()[144:], "counts more than can have moved"),
    ],
)
def test_what_is_no_statement_is_refused_and_no_half(data: bytes, reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        Statement.decode(data)
    assert Receipt.of(data, data) is None
    assert Receipt.of(WHOLE.encode(), data) == Receipt(source=WHOLE)


def test_a_file_has_a_field_a_fact_and_is_read_back() -> None:
    whole = Receipt(WHOLE, WHOLE, Claims("demo", "tcp:x:1", "2026", 3, 2))
    text = msgspec.json.format(msgspec.json.encode(whole))
    assert read_receipt(text) == whole
    assert len(text) < FILE_LIMIT
    fields = msgspec.json.decode(text)
    assert fields["source"]["bytes"] == (1 << 63) - 1
    assert fields["source"]["from-launch"] == "c3" * 48
    assert fields["claimed-by-the-vmm"]["total-time"] == 3


@given(st.binary(max_size=STATEMENT_SIZE + 8))
def test_rubbish_is_refused_as_such(data: bytes) -> None:
    for decode in (Statement.decode, read_receipt):
        with pytest.raises(StreamError):
            decode(data)


@pytest.mark.parametrize(
    "change",
    [{"pages": -1}, {"pages": 1 << 64}, {"guest": "b2" * 15}, {"mac": "F6" * 32}, {"side": "both"}, {"surplus": 1}],
)
def test_a_file_with_an_impossible_field_is_refused(change: dict[str, object]) -> None:
    fields = msgspec.json.decode(msgspec.json.encode(Receipt(WHOLE)))
    fields["source"] |= change
    with pytest.raises(StreamError, match="this is no receipt"):
        read_receipt(msgspec.json.encode(fields))
