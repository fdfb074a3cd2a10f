from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from sealift.errors import UserError
from sealift.vmm.qmp.endpoint import listen_for_qmp


@pytest.mark.parametrize("host", ["192.0.2.1", "example.net", "[::]", ""])
def test_nobody_on_the_network_can_be_let_in(host: str) -> None:
    with pytest.raises(UserError, match="anybody on the network"):
        listen_for_qmp(f"tcp:{host}:0")


@pytest.mark.parametrize("uri", ["127.0.0.1:4444", "tcp:127.0.0.1", "vsock:3:4", "", "/run/qmp.sock"])
def test_what_is_no_address_is_refused_with_how_one_looks(uri: str) -> None:
    with pytest.raises(UserError, match=r"is no address for QMP; write tcp:127\.0\.0\.1:PORT or unix:PATH"):
        listen_for_qmp(uri)


def test_a_socket_of_another_server_is_not_taken_away(tmp_path: Path) -> None:
    uri = f"unix:{tmp_path}/qmp"
    with closing(listen_for_qmp(uri)), pytest.raises(UserError, match="in use already"):
        listen_for_qmp(uri)
    assert not (tmp_path / "qmp").exists()
