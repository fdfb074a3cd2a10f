"""An owner at a socket: what it answers, and what it survives."""

from __future__ import annotations

import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from sealift.cli.owner_desk import OwnerDesk
from sealift.cli.owner_link import ServedOwner, owner_address
from sealift.cli.owner_server import CLIENTS_LIMIT, OwnerServer
from sealift.errors import RefusedError, UserError
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import pair_key
from sealift.owner.owner import Owner
from sealift.vmm.migration.transport import Listener, NetworkAddress, TcpAddress, UnixAddress, connect
from sealift.wire.channel import MESSAGE_LIMIT
from sealift.wire.owner_link import (
    MAGIC,
    VERSION,
    OwnerReply,
    Prepare,
    Prepared,
    Release,
    Secret,
    receive_frame,
    send_frame,
)
from sealift.wire.platform import Failed

from .conftest import Host
from .test_owner import MakeHost

PATIENCE_S = 20.0


@contextmanager
def serving(
    owner: Owner, address: NetworkAddress, patience_s: float = PATIENCE_S
) -> Iterator[tuple[NetworkAddress, list[str]]]:
    """An owner that serves; where, and what it had to say."""
    said: list[str] = []
    listener = Listener(address, unix_mode=0o600)
    server = OwnerServer(listener, OwnerDesk(owner).answer, said.append, patience_s)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield listener.address, said
    finally:
        server.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> NetworkAddress:
    return UnixAddress(tmp_path / "owner.sock") if request.param == "unix" else TcpAddress("127.0.0.1", 0)


@pytest.fixture
def served(owner: Owner, tmp_path: Path) -> Iterator[NetworkAddress]:
    """An owner that serves, at a Unix socket."""
    with serving(owner, UnixAddress(tmp_path / "owner.sock")) as (where, _):
        yield where


def raw(address: NetworkAddress, data: bytes, *, end: bool = True) -> OwnerReply:
    """Say these bytes to a server; its reply."""
    with closing(connect(address)) as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        reply: OwnerReply = receive_frame(sock, OwnerReply, PATIENCE_S)
        return reply


def everything(sock: socket.socket) -> bytes:
    received = b""
    while part := sock.recv(65536):
        received += part
    return received


def frame(body: bytes, magic: bytes = MAGIC, version: int = VERSION, length: int | None = None) -> bytes:
    return magic + version.to_bytes(2) + (len(body) if length is None else length).to_bytes(4) + body


# --- what it is for -----------------------------------------------------------------------------------------------


def test_a_guest_is_launched_and_received_as_with_an_owner_beside_it(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe, address: NetworkAddress
) -> None:
    with serving(owner, address) as (where, said):
        far = ServedOwner(where)
        assert far.prepare() == ()
        source = make_host("a")
        grant = far.begin(source.evidence())
        measure = source.load(grant, recipe)
        _, handler = source.finish(far.release(grant.launch_id, measure), recipe)
        target = make_host("b")
        receiver = far.begin_receiver(target.evidence(), measure)
        received = target.load(receiver, recipe.receiver())
        _, taken = target.finish(far.release(receiver.launch_id, received), recipe)
    assert handler is not None
    assert taken is not None
    assert taken.pair_key == pair_key(handler.key, received)
    assert said == []


def test_an_owner_may_be_restarted_between_two_requests(
    owner: Owner, host: Host, recipe: GuestRecipe, tmp_path: Path
) -> None:
    where = UnixAddress(tmp_path / "owner.sock")
    far = ServedOwner(where)
    with serving(owner, where):
        grant = far.begin(host.evidence())
    measure = host.load(grant, recipe)
    with pytest.raises(RefusedError, match="no owner answers at unix:"):
        far.release(grant.launch_id, measure)
    with serving(Owner(tmp_path / "owner"), where):
        host.finish(far.release(grant.launch_id, measure), recipe)


def test_refusals_have_the_owners_reason_and_are_in_its_log(
    owner: Owner, host: Host, served: NetworkAddress, log: Callable[[], list[str]]
) -> None:
    host.handler = os.urandom(32)
    with pytest.raises(RefusedError, match=f"handler {host.handler.hex()} is not an accepted one"):
        ServedOwner(served).begin(host.evidence())
    with pytest.raises(RefusedError, match="there is no launch"):
        ServedOwner(served).release("0" * 32, bytes(48))
    assert [" refused " in line for line in log()] == [True, True]
    assert owner.ledger.released() == []


def test_a_socket_in_the_file_system_is_the_users_alone_and_goes_with_the_owner(owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "owner.sock"
    before = os.umask(0)
    try:
        with serving(owner, UnixAddress(path)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


def test_many_ask_at_once_and_all_are_answered(owner: Owner, host: Host, address: NetworkAddress) -> None:
    evidence = host.evidence()
    names: list[str] = []
    with serving(owner, address) as (where, said):

        def ask() -> None:
            names.append(ServedOwner(where).begin(evidence).launch_id)

        threads = [threading.Thread(target=ask) for _ in range(CLIENTS_LIMIT // 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert len(set(names)) == CLIENTS_LIMIT // 2
    assert said == []


# --- whoever connects ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(b"", magic=b"HTTP"), "does not start with its magic"),
        (frame(b"", version=VERSION + 1), f"has version {VERSION + 1}; this side speaks {VERSION}"),
        (frame(b"", length=MESSAGE_LIMIT + 1), "is over the limit of"),
        (frame(b"", length=0xFFFFFFFF), "is over the limit of"),
        (frame(b""), "does not parse"),
        (frame(b"\xc1" * 100), "does not parse"),
        (frame(b"\x91" * 5000), "does not parse"),
        (frame(msgspec.msgpack.encode({"type": "Prepare", "surplus": 1})), "does not parse"),
        (frame(msgspec.msgpack.encode({"type": "Session"})), "does not parse"),
        (frame(msgspec.msgpack.encode({"type": "Release", "launch_id": "x", "measure": 7})), "does not parse"),
    ],
)
def test_rubbish_is_answered_with_what_is_wrong_with_it(served: NetworkAddress, data: bytes, reason: str) -> None:
    reply = raw(served, data)
    assert isinstance(reply, Failed)
    assert reason in reply.reason
    assert isinstance(raw(served, frame(msgspec.msgpack.encode(Prepare()))), Prepared)


def test_random_changes_to_a_request_get_an_answer_or_nothing_and_never_a_secret(
    owner: Owner, host: Host, recipe: GuestRecipe, served: NetworkAddress
) -> None:
    """Nor do they end the server, which answers the true request afterwards."""
    far = ServedOwner(served)
    grant = far.begin(host.evidence())
    measure = host.load(grant, recipe)
    whole = frame(msgspec.msgpack.encode(Release(grant.launch_id, measure)))
    chance = random.Random(5)  # the same changes every time
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 5))):
            data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        cut = chance.choice((len(data), len(data), chance.randrange(1, len(data))))
        with closing(connect(served)) as sock:
            sock.sendall(data[:cut])
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(PATIENCE_S)
            received = everything(sock)
        assert b"Secret" not in received
    assert owner.ledger.released() == []
    host.finish(far.release(grant.launch_id, measure), recipe)


def test_one_who_says_nothing_is_let_go_in_time(owner: Owner, tmp_path: Path) -> None:
    with (
        serving(owner, UnixAddress(tmp_path / "owner.sock"), patience_s=0.2) as (where, said),
        closing(connect(where)) as silent,
        closing(connect(where)) as slow,
    ):
        slow.sendall(MAGIC)
        silent.settimeout(PATIENCE_S)
        slow.settimeout(PATIENCE_S)
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
    assert said == ["a client was let go: the connection broke, or nothing came in time: timed out"] * 2


def test_those_who_only_hold_connections_keep_nobody_out(served: NetworkAddress) -> None:
    """Places are taken from who waits longest, whole requests from nobody."""
    with_nothing_to_say = [connect(served) for _ in range(2 * CLIENTS_LIMIT)]
    try:
        assert ServedOwner(served).prepare() == ()
        with_nothing_to_say[0].settimeout(PATIENCE_S)
        assert with_nothing_to_say[0].recv(1) == b""
    finally:
        for sock in with_nothing_to_say:
            sock.close()


def test_one_who_does_not_take_its_answer_stops_nobody(served: NetworkAddress) -> None:
    with closing(connect(served)) as deaf:
        send_frame(deaf, Prepare(), PATIENCE_S)
        assert ServedOwner(served).prepare() == ()


# --- what a VMM survives ------------------------------------------------------------------------------------------


@contextmanager
def impostor(path: Path, *replies: bytes) -> Iterator[NetworkAddress]:
    """Listens in an owner's place, and says these bytes to those who connect, one after the other."""
    listener = Listener(UnixAddress(path))

    def serve() -> None:
        for reply in replies:
            with closing(listener.accept()) as sock:
                sock.recv(MESSAGE_LIMIT)
                sock.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.address
    finally:
        thread.join(PATIENCE_S)
        listener.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "connection ended within a message"),
        (frame(b"", length=1 << 31), "is over the limit of"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not start with its magic"),
        (frame(msgspec.msgpack.encode({"type": "Session", "grant": {}})), "does not parse"),
        (frame(msgspec.msgpack.encode({"type": "Begin"})), "does not parse"),
        (frame(msgspec.msgpack.encode(Failed("go away", "InternalError", None))), "go away"),
    ],
)
def test_rubbish_in_an_owners_place_is_a_refusal(tmp_path: Path, host: Host, reply: bytes, reason: str) -> None:
    with impostor(tmp_path / "false.sock", reply) as where, pytest.raises(RefusedError) as refused:
        ServedOwner(where).begin(host.evidence())
    assert reason in f"{refused.value} {refused.value.__cause__}"


def test_an_answer_to_another_question_is_a_refusal(tmp_path: Path, host: Host) -> None:
    reply = frame(msgspec.msgpack.encode(Prepared(())))
    with impostor(tmp_path / "false.sock", reply) as where, pytest.raises(RefusedError, match="Prepared"):
        ServedOwner(where).begin(host.evidence())


def test_an_owner_that_never_answers_is_not_waited_for_without_end(tmp_path: Path) -> None:
    listener = Listener(UnixAddress(tmp_path / "mute.sock"))
    with closing(listener):
        begun = time.monotonic()
        with pytest.raises(RefusedError, match="gave no answer"):
            ServedOwner(listener.address, limit_s=0.2).prepare()
        assert time.monotonic() - begun < PATIENCE_S


def test_an_owner_that_is_not_there_is_named() -> None:
    with pytest.raises(RefusedError, match=r"no owner answers at tcp:127\.0\.0\.1:1,"):
        ServedOwner(owner_address("tcp:127.0.0.1:1")).prepare()
    with pytest.raises(UserError, match="there is no host"):
        ServedOwner(owner_address("tcp:no.such.host.invalid:4450")).prepare()
    with pytest.raises(UserError, match="an owner is served at tcp:HOST:PORT or unix:PATH, not at fd:3"):
        owner_address("fd:3")


def test_a_secret_seen_on_the_way_is_of_no_use(
    owner: Owner, host: Host, recipe: GuestRecipe, served: NetworkAddress
) -> None:
    """What goes over the connection holds neither the planted secret nor the migration key."""
    grant = ServedOwner(served).begin(host.evidence())
    pending = owner.ledger.find(grant.launch_id)
    assert pending is not None
    measure = host.load(grant, recipe)
    with closing(connect(served)) as sock:
        send_frame(sock, Release(grant.launch_id, measure), PATIENCE_S)
        reply = receive_frame(sock, OwnerReply, PATIENCE_S)
    assert isinstance(reply, Secret)
    seen = msgspec.msgpack.encode(grant) + msgspec.msgpack.encode(reply)
    assert pending.transport is not None
    keys = [pending.key, pending.transport.tek, pending.transport.tik, *(entry.data for entry in pending.entries)]
    assert all(key not in seen for key in keys)
