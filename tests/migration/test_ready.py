"""A receiver's start-up code says when it is done, in one way only."""

from __future__ import annotations

import pytest

from sealift.errors import StreamError
from sealift.vmm.devices.ready import ReadyPort

PORT = 0x5EA1


def test_only_the_agreed_value_means_ready() -> None:
    heard: list[str] = []
    port = ReadyPort(lambda: heard.append("ready"))
    for value in (0, 2, 0xFF):
        port.write(PORT, 1, value)
    assert heard == []
    port.write(PORT, 1, 1)
    assert heard == ["ready"]


def test_there_is_nothing_to_read_and_nothing_to_move() -> None:
    port = ReadyPort(lambda: None)
    assert PORT in port.ports
    assert port.read(PORT, 1) == 0xFF
    assert port.save() == b""
    port.restore(b"")
    with pytest.raises(StreamError, match="no state"):
        port.restore(b"x")
