"""TLS around a migration: both sides prove who they are, what fails is a sentence, and the guest runs on."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
import threading
from pathlib import Path

import pytest

from sealift.errors import LostError, UserError
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.route import Route
from sealift.vmm.migration.source import Migration
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.tls import Credentials, read_psk
from sealift.vmm.migration.transport import TcpAddress, UnixAddress

from . import rig
from .certificates import Authority


@dataclasses.dataclass(frozen=True)
class Sides:
    """Credentials of the two sides."""

    source: Path
    target: Path

    @property
    def parameters(self) -> Parameters:
        """The source's."""
        return Parameters(tls_creds=str(self.source))


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    """Credentials that fit."""
    authority = Authority()
    found = Sides(tmp_path / "source", tmp_path / "target")
    authority.issue(found.source, "client")
    authority.issue(found.target, "server")
    return found


def refused(world: rig.World, parameters: Parameters, target: Path | None) -> rig.Attempt:
    """A migration that does not come about; the guest runs on."""
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, parameters, tls=target)
    attempt.begin()
    assert attempt.end(listening=True).status == "failed"
    guest.work(4)
    return attempt


def reason(attempt: rig.Attempt) -> str:
    """What the source's user is told."""
    assert attempt.info is not None
    return attempt.info.error_desc or ""


def test_a_cancel_ends_a_handshake_that_the_target_is_silent_in(world: rig.World, sides: Sides) -> None:
    guest = world.start()
    guest.work(4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        migration = Migration(
            guest.machine, guest.launched, guest.name, sides.parameters, lambda _: None, SystemClock()
        )
        infos: list[MigrationInfo] = []
        thread = threading.Thread(
            target=lambda: infos.append(migration.run(f"tcp:127.0.0.1:{silent.getsockname()[1]}"))
        )
        thread.start()
        met, _ = silent.accept()
        with met:
            assert met.recv(1, socket.MSG_PEEK), "the source has begun the handshake"
            migration.cancel()
            thread.join(rig.PATIENCE_S)
            assert met.recv(1 << 16), "the source's first words"
            assert met.recv(1) == b"", "nothing comes after them"
    assert [info.status for info in infos] == ["cancelled"]
    guest.work(4)


def test_who_has_hung_up_makes_no_more_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        route = Route(TcpAddress("127.0.0.1", server.getsockname()[1]), "", "")
        with contextlib.closing(route), route.connect() as first:
            met, _ = server.accept()
            with met:
                route.hang_up()
                assert (first.recv(1), met.recv(1)) == (b"", b"")
            with pytest.raises(LostError, match="no more connections"):
                route.connect()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_guest_moves_through_tls_on_every_connection(hosts: Path, sides: Sides, channels: int) -> None:
    with rig.world(hosts, rig.recipe(megabytes=32)) as world:
        guest = world.start()
        guest.work(8)
        parameters = dataclasses.replace(
            sides.parameters, multifd_channels=channels, capabilities=frozenset({Capability.MULTIFD})
        )
        attempt = rig.attempt(world, guest, parameters, tls=sides.target)
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", (info.error_desc, attempt.refused)
        assert len(attempt.tapes) == channels
        attempt.guest().work(8)


@pytest.mark.attack("network", "poses as the target of a source that wants TLS", gains="denial of service")
def test_a_target_whose_certificate_another_authority_signed_gets_nothing(
    world: rig.World, sides: Sides, tmp_path: Path
) -> None:
    Authority().issue(tmp_path / "other", "server")
    attempt = refused(world, sides.parameters, tmp_path / "other")
    assert "the target's certificate is not to be trusted" in reason(attempt)
    assert not attempt.tapes


@pytest.mark.attack("network", "poses as a source to a target that wants TLS", gains="nothing")
def test_a_source_whose_certificate_another_authority_signed_is_not_listened_to(
    world: rig.World, sides: Sides, tmp_path: Path
) -> None:
    other = Authority("others")
    other.issue(tmp_path / "other", "client")
    (tmp_path / "other" / "ca-cert.pem").write_bytes((sides.source / "ca-cert.pem").read_bytes())
    attempt = refused(world, Parameters(tls_creds=str(tmp_path / "other")), sides.target)
    assert "alert" in reason(attempt)
    assert any("the source's certificate is not to be trusted" in notice for notice in world.notices)


def test_an_expired_certificate_is_named_as_such(world: rig.World, tmp_path: Path) -> None:
    authority = Authority()
    authority.issue(tmp_path / "source", "client")
    authority.issue(tmp_path / "target", "server", expired=True)
    attempt = refused(world, Parameters(tls_creds=str(tmp_path / "source")), tmp_path / "target")
    assert "certificate has expired" in reason(attempt)


def test_a_certificate_for_another_host_is_refused_unless_its_name_is_expected(
    world: rig.World, tmp_path: Path
) -> None:
    authority = Authority()
    authority.issue(tmp_path / "source", "client")
    authority.issue(tmp_path / "target", "server", "b.example")
    parameters = Parameters(tls_creds=str(tmp_path / "source"))
    attempt = refused(world, parameters, tmp_path / "target")
    assert "certificate is not valid for '127.0.0.1'" in reason(attempt)
    guest = attempt.world.guests[0]
    named = rig.attempt(
        world, guest, dataclasses.replace(parameters, tls_hostname="b.example"), tls=tmp_path / "target"
    )
    named.begin()
    assert named.end().status == "completed"
    named.guest().work(4)


def test_a_plain_source_is_told_that_the_target_wants_tls(world: rig.World, sides: Sides) -> None:
    attempt = refused(world, Parameters(), sides.target)
    assert "this target takes guests over TLS only" in reason(attempt)


def test_a_source_with_tls_is_told_that_the_target_has_none(world: rig.World, sides: Sides) -> None:
    attempt = refused(world, sides.parameters, None)
    assert "the target does not speak TLS" in reason(attempt)


def test_a_unix_socket_needs_the_name_that_the_certificate_is_for(
    world: rig.World, sides: Sides, tmp_path: Path
) -> None:
    guest = world.start()
    guest.work(4)
    address = UnixAddress(tmp_path / "b.sock")
    attempt = rig.attempt(world, guest, sides.parameters, address=address, tls=sides.target)
    attempt.begin()
    info = attempt.end(listening=True)
    assert "names no host for the target's certificate; set tls-hostname" in (info.error_desc or "")


def test_credentials_that_lack_a_file_name_it(sides: Sides) -> None:
    (sides.target / "server-key.pem").unlink()
    with pytest.raises(UserError, match=r"lack server-key.pem"):
        Credentials(sides.target).check()


def test_a_key_of_another_certificate_is_refused_at_once(sides: Sides, tmp_path: Path) -> None:
    Authority().issue(tmp_path / "other", "server")
    (sides.target / "server-key.pem").write_bytes((tmp_path / "other" / "server-key.pem").read_bytes())
    with pytest.raises(UserError, match=r"server-cert.pem cannot be used with the key server-key.pem"):
        Credentials(sides.target).check()


def test_shared_keys_are_read_as_psktool_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.psk"
    path.write_text("# two\nqemu:00ff\nother:aabb\n")
    assert read_psk(path) == {"qemu": b"\0\xff", "other": b"\xaa\xbb"}
    path.write_text("qemu:no hexadecimal\n")
    with pytest.raises(UserError, match="are not lines USER:HEX"):
        read_psk(path)
    path.write_text("")
    with pytest.raises(UserError, match="are none"):
        read_psk(path)


HAS_SHARED_KEYS = sys.version_info >= (3, 13)


def shared_keys(directory: Path, key: str = "5a") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "keys.psk").write_text(f"qemu:{key * 32}\n")
    return directory


@pytest.mark.skipif(HAS_SHARED_KEYS, reason="this Python has them")
def test_shared_keys_say_which_python_they_need(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs Python 3\.13 or later"):
        Credentials(shared_keys(tmp_path)).check()


@pytest.mark.skipif(not HAS_SHARED_KEYS, reason="NOT TESTED, needs Python 3.13")
@pytest.mark.parametrize(("key", "status"), [("5a", "completed"), ("5b", "failed")])
def test_shared_keys_let_in_who_has_them(world: rig.World, tmp_path: Path, key: str, status: str) -> None:
    guest = world.start()
    guest.work(4)
    theirs = shared_keys(tmp_path / "there")
    parameters = Parameters(tls_creds=str(shared_keys(tmp_path / "here", key)))
    attempt = rig.attempt(world, guest, parameters, tls=theirs)
    attempt.begin()
    assert attempt.end(listening=status == "failed").status == status, attempt.info
    (attempt.guest() if status == "completed" else guest).work(4)
