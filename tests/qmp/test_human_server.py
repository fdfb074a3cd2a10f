"""The human monitor's socket, as scripts written for QEMU's use it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from harness import PATIENCE_S
from qmp.conftest import Served
from qmp.test_server import ask
from sealift.errors import UserError
from sealift.vmm.control import ControlThread
from sealift.vmm.migration.transport import TcpAddress
from sealift.vmm.qmp.endpoint import listen_for_monitor
from sealift.vmm.qmp.human_server import CLIENTS_LIMIT, HumanServer

PROMPT = b"(qemu) "


@pytest.fixture(scope="module")
def port(served: Served) -> Iterator[int]:
    """Of the loopback, where the monitor is served."""
    with ExitStack() as ending:
        listener = ending.enter_context(closing(listen_for_monitor("tcp:127.0.0.1:0")))
        assert isinstance(listener.address, TcpAddress)
        control = ControlThread()
        ending.callback(control.close)
        server = control.make(lambda: HumanServer(served.guest))
        control.start(server.serve(listener.listening))
        yield listener.address.port


class User:
    """Who sends bytes, and reads up to the next prompt."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)

    def read(self) -> bytes:
        """All before the prompt."""
        received = b""
        while not received.endswith(PROMPT):
            data = self.sock.recv(4096)
            assert data, received
            received += data
        return received.removesuffix(PROMPT)

    def ask(self, line: bytes) -> bytes:
        """The answer to bytes that end a line."""
        self.sock.sendall(line)
        return self.read()

    def rest(self) -> bytes:
        """All until the end."""
        return b"".join(iter(lambda: self.sock.recv(4096), b""))


@contextmanager
def user(port: int) -> Iterator[User]:
    """Connected, and greeted."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        made = User(sock)
        assert made.read().endswith(b" monitor - type 'help' for more information\r\n")
        yield made


def test_lines_are_answered_up_to_the_prompt(port: int) -> None:
    with user(port) as one:
        assert one.ask(b"info status\n") == b"VM status: running\r\n"
        assert one.ask(b"info name\r\n") == b"served\r\n"  # as telnet ends lines
        assert one.ask(b"\n") == b""
        assert one.ask(b"dance\n") == b"unknown command: 'dance'\r\n"
        assert b"cpu index -- set the default CPU\r\n" in one.ask(b"help\n")


def test_each_user_looks_at_a_vcpu_of_its_own(served: Served, port: int) -> None:
    ask(served, "stop")
    try:
        with user(port) as one, user(port) as other:
            assert one.ask(b"cpu 1\n") == b""
            assert one.ask(b"info registers\n").startswith(b"CPU#1\r\n")
            assert other.ask(b"info registers\n").startswith(b"CPU#0\r\n")
            for wrong in (b"2", b"x", b"1x", b"''"):
                assert b"invalid CPU index" in one.ask(b"cpu " + wrong + b"\n")
            assert b"unsupported option" in one.ask(b"cpu -1\n")
            assert one.ask(b"info cpus\n").splitlines()[1].startswith(b"* CPU #1")
    finally:
        ask(served, "cont")


def test_who_sends_rubbish_or_breaks_off_ends_only_itself(port: int) -> None:
    with user(port) as steady:
        with user(port) as one:
            one.sock.sendall(b"info sta")
        with user(port) as one:
            assert b"unparsable line" in one.ask(b"info 'status\n")
            assert one.ask(b"\xff\xfe\x00\n").startswith(b"unknown command")
        with user(port) as one:
            one.sock.sendall(b"x" * (1 << 17))
            with suppress(ConnectionError):  # what it says first may get lost: it reads no more
                assert one.rest() == b"the line is too long\r\n"
        assert steady.ask(b"info status\n") == b"VM status: running\r\n"


def greeted(port: int) -> bool:
    """Whether there is room for one more."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock, suppress(ConnectionError):
        return bool(sock.recv(4096))
    return False


def test_there_is_room_for_so_many_users_and_again_when_one_leaves(port: int) -> None:
    with ExitStack() as users:
        while not greeted(port):  # those of the test before are gone
            pass
        first, *_ = [users.enter_context(user(port)) for _ in range(CLIENTS_LIMIT - 1)]
        with user(port):
            assert not greeted(port)
        while not greeted(port):
            pass
        assert first.ask(b"info name\n") == b"served\r\n"


def test_only_this_machine_reaches_it() -> None:
    with pytest.raises(UserError, match=r"the monitor on tcp:0\.0\.0\.0:4444 would let anybody on the network control"):
        listen_for_monitor("tcp:0.0.0.0:4444")
