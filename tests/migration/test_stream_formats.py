"""Whatever bytes come, they parse to what was written or are refused with a sentence."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import PeerError, RefusedError, SealError, StreamError, sentence
from sealift.wire import handover, qemu_stream
from sealift.wire.handover import Frame, FrameKind, Hello, Refusal
from sealift.wire.token import TOKEN_SIZE

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 1 << 20), RamBlock("pc.bios", Gpa(1 << 32), 1 << 16)))


class Bytes:
    """Reads from bytes, as a `StreamReader` from its socket."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        """Exactly so many bytes."""
        if self.at + length > len(self.data):
            raise StreamError("truncated")
        self.at += length
        return self.data[self.at - length : self.at]


def test_front_and_block_list_are_read_back() -> None:
    read = Bytes(qemu_stream.encode_front() + qemu_stream.encode_block_list(LAYOUT))
    qemu_stream.read_front(read.take)
    assert qemu_stream.read_block_list(read.take) == (("pc.ram", 1 << 20), ("pc.bios", 1 << 16))
    assert read.at == len(read.data)


@given(st.binary(max_size=64))
def test_no_bytes_upset_the_readers(data: bytes) -> None:
    for reader in (
        qemu_stream.read_front,
        qemu_stream.read_section,
        qemu_stream.read_block_list,
        qemu_stream.read_description,
        handover.read_frame,
        lambda take: qemu_stream.read_state(take, "serial"),
    ):
        with contextlib.suppress(StreamError):  # the one way to say no; any other error fails the test
            reader(Bytes(data).take)


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_messages(data: bytes) -> None:
    for decode in (Hello.decode, Refusal.decode):
        with contextlib.suppress(StreamError):
            decode(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0", "unknown kind 0"),
        (bytes([FrameKind.ANSWER]), "ANSWER frame of"),
        (bytes([FrameKind.FINAL]), "FINAL frame of"),
    ],
)
def test_a_frame_over_its_limit_or_of_kind_0_is_refused_unread(data: bytes, reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        handover.read_frame(Bytes(data + b"\x7f\xff\xff\xff").take)


def test_limits_hold_before_anything_is_read() -> None:
    huge = (1 << 31).to_bytes(4, "big")
    with pytest.raises(StreamError, match="over the limit"):
        qemu_stream.read_state(Bytes(huge).take, "serial")
    with pytest.raises(StreamError, match="over the limit"):
        qemu_stream.read_description(Bytes(b"\x06" + huge).take)
    with pytest.raises(StreamError, match="over the limit"):
        qemu_stream.read_front(Bytes(b"QEVM\0\0\0\3\7" + huge).take)


def test_a_refusal_brings_branch_and_sentence_across() -> None:
    cause = SealError("record 3 of channel 0 is not authentic")
    refusal = Refusal.decode(Refusal.of(cause, b"token").frame().payload)
    assert isinstance(refusal.error(), SealError)
    assert sentence(refusal.error()) == str(cause)
    assert refusal.token == b"token"


def test_a_refusal_cannot_command_the_terminal_that_shows_it() -> None:
    hostile = Refusal("RefusedError", "\x1b[2Jgone\x07" + "x" * 10_000)
    shown = Refusal.decode(hostile.frame().payload)
    assert shown.reason.isprintable()
    assert len(shown.reason) <= 4096


def test_an_unknown_branch_is_a_refusal() -> None:
    assert type(Refusal("SystemExit", "no").error()) is RefusedError


def test_another_version_of_the_protocol_is_refused_by_name() -> None:
    hello = hello_of("psp").encode()
    assert Hello.decode(hello).guest == "guest"
    with pytest.raises(StreamError, match=f"version 2 of the migration protocol, this target {handover.VERSION}"):
        Hello.decode(b"\0\2" + hello[2:])


def test_a_method_that_the_target_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(StreamError, match=r"migration method 'tdx'; this target knows mh, psp, plain"):
        Hello.decode(hello_of("tdx").encode())


def hello_of(method: str) -> Hello:
    return Hello(method, "guest", 1, handover.blocks_of(LAYOUT), handover.Hardware("bare", 47, b""), b"offer")


def test_frames_are_read_back() -> None:
    frame = Frame(FrameKind.PREPARED, bytes(range(TOKEN_SIZE)))
    assert handover.read_frame(Bytes(frame.encode()).take) == frame


@given(st.lists(st.integers(0, 1 << 20), max_size=40), st.text("abc", min_size=1, max_size=300))
def test_a_description_is_found_from_the_end_whatever_its_length(lengths: list[int], name: str) -> None:
    """The analyser looks for the last zero byte and the next brace; the length before it must hold neither."""
    sections = [qemu_stream.describe_piece(number, length) for number, length in enumerate(lengths)]
    data = qemu_stream.encode_description([*sections, qemu_stream.describe_state(name, 1, 5)])
    at = data.index(b"{", data.rindex(b"\0"))
    assert at == 5
    assert json.loads(data[at:])["devices"][-1]["name"] == name
    read = Bytes(data)
    qemu_stream.read_description(read.take)
    assert read.at == len(data)


@pytest.mark.parametrize("error", [StreamError("x"), SealError("x"), RefusedError("x")])
def test_peers_faults_stay_peers_faults(error: PeerError) -> None:
    assert isinstance(Refusal.of(error).error(), type(error))
