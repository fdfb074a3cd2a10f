from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import locks
from sealift.errors import FirmwareError, UserError
from sealift.sev.chain import PlatformChain
from sealift.sev.status import Status
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.manufacturer import CA_CHAIN_SIZE, Manufacturer

API = (1, 55)


@pytest.fixture
def own_path(host_path: Path, manufacturer_path: Path, tmp_path: Path) -> Path:
    """A copy of a provisioned host, to be damaged."""
    PlatformIdentity(host_path, manufacturer_path).provision(API)
    copy = tmp_path / "identity"
    shutil.copytree(host_path, copy)
    return copy


def _all_private(path: Path) -> bool:
    return all(item.stat().st_mode & 0o077 == 0 for item in (path, *path.iterdir()))


def test_the_manufacturer_does_not_claim_to_be_amd(manufacturer_path: Path) -> None:
    made = Manufacturer(manufacturer_path)
    assert made.ark.key_id.startswith(b"not AMD ")
    assert made.ask.key_id.startswith(b"not AMD ")
    assert made.ark.certifying_id == made.ask.certifying_id == made.ark.key_id
    assert len(made.ca_chain) == CA_CHAIN_SIZE == 3200


def test_the_manufacturers_keys_last_and_are_private(manufacturer_path: Path) -> None:
    assert Manufacturer(manufacturer_path).ca_chain == Manufacturer(manufacturer_path).ca_chain
    assert _all_private(manufacturer_path)


def test_a_manufacturer_whose_private_key_is_damaged_endorses_nothing(manufacturer_path: Path, tmp_path: Path) -> None:
    """Its public half is right, so it loads; what it signs is looked at before anybody gets it."""
    damaged = tmp_path / "m"
    shutil.copytree(manufacturer_path, damaged)
    file = damaged / "ask.key"
    content = bytearray(file.read_bytes())
    for place in (800, -200):  # in d, and in what makes computing with it shorter: one alone would do
        content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the manufacturer's keys in .* are damaged"):
        PlatformIdentity(tmp_path / "host", damaged)


def test_a_damaged_manufacturer_is_explained(manufacturer_path: Path, tmp_path: Path) -> None:
    Manufacturer(manufacturer_path)
    for name, content in (("ask.key", b"no key"), ("ask_ark.cert", b"no certificates")):
        damaged = tmp_path / name
        shutil.copytree(manufacturer_path, damaged)
        (damaged / name).write_bytes(content)
        with pytest.raises(UserError, match="restore them from a copy"):
            Manufacturer(damaged)


def test_an_identity_lasts(host_path: Path, manufacturer_path: Path) -> None:
    """Test that a platform is the same platform in the next run, and needs no manufacturer for it."""
    first = PlatformIdentity(host_path, manufacturer_path)
    again = PlatformIdentity(host_path, Path("/nonexistent"))
    assert first.provision(API).encode() == again.provision(API).encode()
    assert first.cek == again.cek
    assert _all_private(host_path)


def test_two_directories_are_two_hosts(host_path: Path, manufacturer_path: Path, tmp_path: Path) -> None:
    here = PlatformIdentity(host_path, manufacturer_path)
    there = PlatformIdentity(tmp_path / "other", manufacturer_path)
    assert here.cek.fingerprint() != there.cek.fingerprint()
    assert here.ca_chain == there.ca_chain
    assert there.keys() is None
    assert there.provision(API).pdh != here.provision(API).pdh


def test_a_platforms_chain_verifies_up_to_the_manufacturer(identity: PlatformIdentity) -> None:
    keys = identity.provision(API)
    cert_chain = keys.pek.encode() + keys.oca.encode() + identity.cek.encode()
    chain = PlatformChain.decode(keys.pdh.encode(), cert_chain, identity.ca_chain)
    chain.verify({chain.ark.fingerprint()})
    assert keys.pdh.api == keys.pek.api == keys.oca.api == API


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("chip.secret", 5),
        ("endorsement.cert", 0x20),
        ("endorsement.cert", 2084 + 100),
        ("endorsement.cert", 2084 + 1600 + 1590),
        ("platform.keys", 0),
        ("platform.keys", 10),
        ("platform.keys", 60),
        ("platform.keys", 104 + 0x420),
        ("platform.keys", 104 + 2084 + 0x420),
        ("platform.keys", 104 + 2084 + 0x630),
        ("platform.keys", 104 + 2 * 2084 + 0x20),
    ],
)
def test_one_changed_bit_is_noticed(own_path: Path, name: str, offset: int) -> None:
    _flip(own_path / name, offset)
    with pytest.raises(UserError, match="tampered with"):
        PlatformIdentity(own_path, Path("/nonexistent")).keys()


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.chmod(0o755), "chmod 700"),
        (lambda path: (path / "chip.secret").chmod(0o644), "chmod 600"),
        (lambda path: (path / "platform.keys").chmod(0o640), "chmod 600"),
        (lambda path: (path / "chip.secret").unlink(), "has no file chip.secret"),
        (lambda path: _shorten(path / "chip.secret"), "tampered with"),
        (lambda path: _shorten(path / "platform.keys"), "tampered with"),
        (lambda path: _shorten(path / "endorsement.cert"), "tampered with"),
    ],
    ids=["directory", "chip file", "key file", "missing", "chip", "keys", "endorsement"],
)
def test_what_is_wrong_with_a_directory_is_said(
    own_path: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(own_path)
    with pytest.raises(UserError, match=complaint):
        PlatformIdentity(own_path, Path("/nonexistent")).keys()


def test_keys_of_another_chip_are_refused(own_path: Path, manufacturer_path: Path, tmp_path: Path) -> None:
    other = PlatformIdentity(tmp_path / "other", manufacturer_path)
    stolen = other.provision(API).encode()
    (own_path / "platform.keys").write_bytes(stolen)
    with pytest.raises(UserError, match="tampered with"):
        PlatformIdentity(own_path, Path("/nonexistent")).keys()


def _stored(identity: PlatformIdentity) -> bytes:
    keys = identity.keys()
    assert keys is not None
    return keys.encode()


def test_keys_do_not_change_under_a_guest(own_path: Path) -> None:
    identity = PlatformIdentity(own_path, Path("/nonexistent"))
    before, held = _stored(identity), identity.hold()
    elsewhere = PlatformIdentity(own_path, Path("/nonexistent"))
    with pytest.raises(FirmwareError, match="can change when they are gone") as caught, elsewhere.changing():
        elsewhere.regenerate(API)
    assert caught.value.status == Status.INVALID_PLATFORM_STATE
    assert _stored(identity) == before
    held.release()
    with elsewhere.changing():
        fresh = elsewhere.regenerate(API)
    assert _stored(identity) == fresh.encode() != before
    assert fresh.pdh_key.public_key() == fresh.pdh.key()


def test_a_guests_own_lock_does_not_stand_in_its_way(own_path: Path) -> None:
    """Test that whoever holds the keys alone may change them, and holds them for use again afterwards."""
    identity, other = (PlatformIdentity(own_path, Path("/nonexistent")) for _ in range(2))
    held = identity.hold()
    with identity.changing(held):
        identity.regenerate(API)
        assert not locks.free(own_path)
    beside = other.hold()
    with pytest.raises(FirmwareError), identity.changing(held):
        identity.erase()
    beside.release()
    assert other._directory.in_use(), "a refused change must not cost the lock"
    held.release()


def test_two_processes_starting_at_once_agree(manufacturer_path: Path, tmp_path: Path) -> None:
    """Test the first use of a directory by several sockets of one host."""
    program = (
        "import sys, pathlib\n"
        "from sealift.silicon.processor.identity import PlatformIdentity\n"
        "made = PlatformIdentity(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "print(made.provision((1, 55)).pdh.fingerprint().hex(), made.cek.fingerprint().hex())\n"
    )
    Manufacturer(manufacturer_path)
    command = [sys.executable, "-c", program, str(tmp_path / "host"), str(manufacturer_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(outputs) == 1


ASKS = """
import pathlib, select, sys
from sealift.privatefiles import PrivateDirectory
directory = PrivateDirectory(pathlib.Path(sys.argv[1]), "platform identity")
print("asking", flush=True)
found = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    found += directory.in_use()
print(found)
"""
CHANGES = """
import pathlib, sys
from sealift.silicon.processor.identity import PlatformIdentity
identity = PlatformIdentity(pathlib.Path(sys.argv[1]), pathlib.Path("/nonexistent"))
for _ in range(40):
    with identity.changing():
        identity.store(identity.keys().with_new_pdh((1, 55)))
print(identity.keys().pdh.fingerprint().hex())
"""


def _start(program: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_who_asks_and_who_changes_at_once_stand_in_nobodys_way(own_path: Path) -> None:
    """Test two processes that ask whether the host has guests, and two that change its keys: no guest, no refusal."""
    askers = [_start(ASKS, own_path) for _ in range(2)]
    assert [asker.stdout.readline() for asker in askers if asker.stdout] == ["asking\n"] * 2
    changers = [_start(CHANGES, own_path) for _ in range(2)]
    changed = [changer.communicate(timeout=60) for changer in changers]
    asked = [asker.communicate(timeout=60)[0] for asker in askers]
    assert [changer.returncode for changer in changers] == [0, 0], changed
    assert asked == ["0\n"] * 2
    identity = PlatformIdentity(own_path, Path("/nonexistent"))
    keys = identity.keys()
    assert keys is not None
    assert f"{keys.pdh.fingerprint().hex()}\n" in {out for out, _ in changed}


def test_private_keys_are_never_shown(identity: PlatformIdentity) -> None:
    keys = identity.provision(API)
    shown = repr(keys) + repr(identity)
    for key in (keys.pek_key, keys.pdh_key):
        assert f"{key.private_numbers().private_value:x}" not in shown
    assert "EllipticCurve" not in shown
