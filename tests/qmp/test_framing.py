from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.errors import StreamError
from sealift.vmm.qmp.framing import REQUEST_LIMIT, Frame, Framer

_TEXT = st.text(alphabet='{}[]"\\ \n\té', max_size=8)
_VALUES = st.recursive(_TEXT | st.integers() | st.none(), lambda inner: st.dictionaries(_TEXT, inner) | st.lists(inner))
_OBJECTS = st.lists(st.dictionaries(_TEXT, _VALUES, max_size=4), max_size=5)


@settings(max_examples=60)
@given(_OBJECTS, st.sampled_from([None, 2]), st.sampled_from(["", "\n", " \r\n "]), st.data())
def test_objects_are_found_however_they_are_spread_over_lines_and_reads(
    objects: list[dict[str, Any]], indent: int | None, between: str, data: st.DataObject
) -> None:
    stream = between.join(json.dumps(value, indent=indent, ensure_ascii=False) for value in objects).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    framer = Framer()
    frames: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += framer.feed(stream[start:end])
    assert [json.loads(frame.data) for frame in frames] == objects


def test_a_line_that_is_no_object_is_handed_on_and_does_not_swallow_the_next_request() -> None:
    frames = Framer().feed(b'quit\n{"execute": "quit"}')
    assert [frame.data for frame in frames] == [b"quit", b'{"execute": "quit"}']


def test_a_request_without_end_is_refused_at_the_limit() -> None:
    framer = Framer()
    with pytest.raises(StreamError, match="longer than"):
        framer.feed(b'{"' + b"x" * REQUEST_LIMIT)
