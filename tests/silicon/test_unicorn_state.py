"""The portable engine's state of a vCPU is made of named registers, each of which is checked."""

from __future__ import annotations

import msgspec
import pytest

from sealift.errors import StreamError
from sealift.silicon.engines.unicorn.engine import UnicornFactory

from .board import Board, EngineKind


@pytest.fixture
def board() -> Board:
    return Board(EngineKind("unicorn", UnicornFactory, exact=True))


def too_wide(value: object) -> object:
    """A value that its register cannot take."""
    if isinstance(value, bytes):
        return value + b"\0"
    if isinstance(value, list):
        return [value[0], 1 << 16]
    return -1


@pytest.mark.parametrize("group", ["integers", "msrs", "vectors", "x87"])
def test_registers_that_lack_are_unknown_or_too_wide_are_refused(board: Board, group: str) -> None:
    state = msgspec.msgpack.decode(board.vcpus[0].save())
    for name in sorted(state[group]):
        rest = {key: value for key, value in state[group].items() if key != name}
        for wrong in (rest, {**rest, "NONE": 0}, {**rest, name: too_wide(state[group][name])}, {**rest, name: "x"}):
            with pytest.raises(StreamError):
                board.vcpus[0].restore(msgspec.msgpack.encode({**state, group: wrong}))
    board.vcpus[0].restore(msgspec.msgpack.encode(state))
