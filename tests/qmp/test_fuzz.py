"""Whatever clients send, the parser answers with an error or a request, and raises nothing else."""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.commands.human import ACTIONS, MONITOR
from sealift.vmm.qmp.framing import DEPTH_LIMIT, Framer
from sealift.vmm.qmp.human import Viewpoint
from sealift.vmm.qmp.message import QmpError, Request, decode_request, request_id

_WORDS = st.sampled_from(["execute", "arguments", "id", "uri", "channels", "capabilities", "tcp:a:1", "enable"])
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | _WORDS
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=8), inner, max_size=4),
)
_PIECES = st.sampled_from(
    [b'{"execute":', b'"quit"', b"}", b"{", b"[", b"]", b'"', b"\\", b",", b"\xff", b"\n", b"1e999"]
)


def _read(data: bytes) -> None:
    with contextlib.suppress(StreamError):
        for frame in Framer().feed(data):
            with contextlib.suppress(QmpError):
                if frame.depth <= DEPTH_LIMIT:
                    request_id(frame.data)
                    decode_request(frame.data)


@given(st.binary(max_size=64) | st.lists(_PIECES | st.binary(max_size=3), max_size=20).map(b"".join))
def test_any_bytes_are_frames_that_are_read_or_refused(data: bytes) -> None:
    _read(data)


@given(_JSON)
def test_any_json_is_a_request_or_refused(value: object) -> None:
    _read(json.dumps(value).encode())


@given(st.integers(0, 3 * DEPTH_LIMIT), st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
def test_the_depth_of_a_frame_is_known(depth: int, brackets: tuple[bytes, bytes]) -> None:
    opening, closing = brackets
    frames = Framer().feed(b'{"execute":' + opening * depth + b"0" + closing * depth + b"}")
    assert [frame.depth for frame in frames] == [depth + 1]


@given(st.sampled_from(COMMANDS.names()), st.dictionaries(_WORDS | st.text(max_size=8), _JSON, max_size=4))
def test_any_arguments_are_a_commands_own_or_refused(name: str, arguments: dict[str, Any]) -> None:
    with contextlib.suppress(QmpError):
        COMMANDS.find(name).bind(Request(name, arguments), cast("Guest", None))


@given(st.data())
def test_arguments_by_name_are_taken_or_refused(data: st.DataObject) -> None:
    """Names that exist, with values of any type: further in than random names ever come."""
    command = COMMANDS.find(data.draw(st.sampled_from(COMMANDS.names())))
    names = [field.encode_name for field in msgspec.structs.fields(command.arguments)]
    if not names:
        return
    arguments = data.draw(st.dictionaries(st.sampled_from(names), _JSON))
    with contextlib.suppress(QmpError):
        command.bind(Request(command.name, arguments), cast("Guest", None))


_KNOWN = {name for command in ACTIONS for name in command.names} | {"info"}


@given(st.text(max_size=20))
def test_any_line_for_people_is_answered_with_text(line: str) -> None:
    words = line.split()
    assume(not words or words[0].strip("\"'") not in _KNOWN)
    assert isinstance(MONITOR.execute(cast("Guest", None), line, Viewpoint()), str)
