"""What a well-behaved client library never sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import PATIENCE_S
from qmp.conftest import Served
from sealift.vmm.qmp.framing import REQUEST_LIMIT


@pytest.fixture
def exchange(served: Served) -> Iterator[Callable[[bytes], Any]]:
    """Sends bytes and returns the next message, None at the end; the greeting is read already."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(served.path))
        with sock.makefile("rb") as lines:
            assert "QMP" in json.loads(lines.readline())

            def send(data: bytes) -> Any:
                if data:
                    sock.sendall(data)
                line = lines.readline()
                return json.loads(line) if line else None

            yield send


def test_nothing_but_negotiation_is_possible_before_negotiation(exchange: Callable[[bytes], Any]) -> None:
    error = exchange(b'{"execute": "quit"}')["error"]
    assert error["class"] == "CommandNotFound"
    assert "qmp_capabilities" in error["desc"]


def test_a_capability_that_is_not_offered_cannot_be_enabled(exchange: Callable[[bytes], Any]) -> None:
    assert "error" in exchange(b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
    assert "error" in exchange(b'{"execute": "query-status"}')


@pytest.mark.parametrize(
    ("request_", "description"),
    [
        (b"hello\n", "JSON parse error"),
        (b'{"execute": }', "JSON parse error"),
        (b'{"run": "quit"}', "QMP input"),
        (b'{"execute": "quit", "argument": {}}', "QMP input member 'argument' is unexpected"),
        (b'{"arguments": {}}', "QMP input lacks member 'execute'"),
        (b'{"execute": 7}', "QMP input member 'execute' must be a string"),
        (b'{"execute": "quit", "arguments": []}', "QMP input member 'arguments' must be an object"),
        (b'["quit"]', "QMP input must be a JSON object"),
        (b'{"execute": "\xff"}', "JSON parse error"),
        (b'{"execute": "quit", "id": ' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 deep"),
        (b'{"execute": "quit", "id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "more than 64 deep"),
    ],
)
def test_what_is_no_request_is_answered_and_the_connection_lives_on(
    exchange: Callable[[bytes], Any], request_: bytes, description: str
) -> None:
    assert exchange(b'{"execute": "qmp_capabilities"}') == {"return": {}}
    error = exchange(request_)["error"]
    assert error["class"] == "GenericError"
    assert description in error["desc"]
    assert "return" in exchange(b'{"execute": "query-version"}')


@pytest.mark.parametrize("opening", [b"POST / HTTP/1.1\r\n", b"Host: localhost\r\n", b"[]"])
def test_who_begins_with_something_else_is_no_client(exchange: Callable[[bytes], Any], opening: bytes) -> None:
    assert exchange(opening)["error"]["class"] == "GenericError"
    assert exchange(b"") is None


@pytest.mark.parametrize("identifier", [1, "one", None, {"a": [1]}])
def test_the_id_comes_back_whatever_it_is(exchange: Callable[[bytes], Any], identifier: object) -> None:
    shown = json.dumps(identifier).encode()
    assert exchange(b'{"execute": "qmp_capabilities", "id": %s}' % shown) == {"return": {}, "id": identifier}
    assert exchange(b'{"execute": "nothing", "id": %s}' % shown)["id"] == identifier
    assert exchange(b'{"exec": "nothing", "id": %s}' % shown)["id"] == identifier


def test_a_request_over_the_limit_ends_the_connection_with_a_word(exchange: Callable[[bytes], Any]) -> None:
    assert "longer than" in exchange(b'{"' + b"x" * REQUEST_LIMIT)["error"]["desc"]
    assert exchange(b"") is None
