from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealift.vmm.migration.socket_address import socket_addresses
from sealift.vmm.migration.transport import TcpAddress, UnixAddress
from sealift.vmm.qmp.channels import migration_uri
from sealift.vmm.qmp.commands.migration import MigrateArguments
from sealift.vmm.qmp.message import QmpError, convert_arguments

INET = {"transport": "socket", "type": "inet", "host": "::1", "port": "4444"}


def uri_of(**arguments: Any) -> str:
    """The address that migrate's arguments name."""
    made = convert_arguments(arguments, MigrateArguments)
    return migration_uri(made.uri, made.channels)


def main(address: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"channel-type": "main", "addr": address}]


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        (INET, "tcp:[::1]:4444"),
        (INET | {"host": "b.example"}, "tcp:b.example:4444"),
        ({"transport": "socket", "type": "unix", "path": "/run/b"}, "unix:/run/b"),
        ({"transport": "socket", "type": "fd", "str": "7"}, "fd:7"),
        ({"transport": "exec", "args": ["/bin/sh", "-c", "cat > x"]}, "exec:/bin/sh -c 'cat > x'"),
        ({"transport": "file", "filename": "/run/x", "offset": 0}, "file:/run/x"),
        ({"transport": "file", "filename": "/run/x", "offset": 4096}, "file:/run/x,offset=4096"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_channel_says_what_a_uri_says(address: dict[str, Any], uri: str) -> None:
    assert uri_of(channels=main(address)) == uri == uri_of(uri=uri)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "need either 'uri' or 'channels' argument"),
        ({"channels": []}, "need either 'uri' or 'channels' argument"),
        ({"uri": "unix:x", "channels": main(INET)}, "mutually exclusive"),
        ({"channels": main(INET) * 2}, "Channel list has more than one entries"),
        ({"channels": main({"transport": "rdma"})}, "Parameter 'transport' does not accept value 'rdma'"),
        ({"channels": main(INET | {"type": "vsock"})}, "Parameter 'type' does not accept value 'vsock'"),
        ({"channels": main(INET | {"speed": 1})}, "Parameter 'speed' is unexpected"),
        ({"channels": main({"transport": "socket", "type": "unix"})}, "Parameter 'path' is missing"),
        ({"channels": main({"transport": "socket", "type": "inet", "host": "b"})}, "Parameter 'port' is missing"),
        (
            {"channels": main({"transport": "file", "filename": "x", "offset": -1})},
            "Parameter 'offset' expects a value",
        ),
        ({"channels": [{"channel-type": "cpr", "addr": INET}]}, "Parameter 'channel-type' does not accept value 'cpr'"),
        ({"channels": main(INET | {"port": 4444})}, "Invalid parameter type for .*port', expected: string"),
    ],
    ids=str,
)
def test_a_channel_that_names_no_place_is_refused_in_qemus_words(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(QmpError, match=complaint):
        uri_of(**arguments)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (TcpAddress("::1", 4444), [{"type": "inet", "host": "::1", "port": "4444"}]),
        (UnixAddress(Path("/run/b")), [{"type": "unix", "path": "/run/b"}]),
    ],
    ids=str,
)
def test_where_a_guest_is_awaited_is_shown_as_a_socket_address(
    address: TcpAddress | UnixAddress, shown: list[dict[str, str]]
) -> None:
    assert msgspec.json.decode(msgspec.json.encode(socket_addresses(address))) == shown
