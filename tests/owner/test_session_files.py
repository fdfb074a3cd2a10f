"""Session files: what firmware accepts, what other tools read, and that secrets stay so."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from owner.conftest import Host
from owner.tool import owner
from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import FirmwareError
from sealift.sev.status import Status
from sealift.silicon.memory.guest_memory import GuestMemory
from sev.conftest import Platform, make_platform, make_root

P384_KEY_INFO = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
"""DER of a P-384 public key, up to its coordinates (RFC 5480)."""


@pytest.fixture(scope="module")
def made() -> Platform:
    return make_platform(make_root(2048))


@pytest.fixture
def chain_file(made: Platform, tmp_path: Path) -> Path:
    chain = made.chain
    certificates = (chain.pdh, chain.pek, chain.oca, chain.cek, chain.ask, chain.ark)
    path = tmp_path / "chain.cert"
    path.write_bytes(b"".join(certificate.encode() for certificate in certificates))
    return path


@pytest.fixture
def root(made: Platform) -> str:
    return made.chain.ark.fingerprint().hex()


@pytest.fixture(autouse=True)
def _no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a local owner, so that nothing is trusted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def kdf(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    """SP800-108 as the SEV API has it, for 16 bytes; written independently of the project's."""
    message = b"\x01\0\0\0" + label + b"\0" + context + b"\x80\0\0\0"
    return hmac.new(key, message, hashlib.sha256).digest()[:16]


def opened(private: ec.EllipticCurvePrivateKey, godh: bytes, session: bytes, directory: Path) -> tuple[bytes, bytes]:
    """TEK and TIK out of a session by OpenSSL's command line and `hmac`; both MACs but the policy's checked."""
    x, y = (godh[start : start + 48][::-1] for start in (0x14, 0x5C))
    own, peer = directory / "own.pem", directory / "peer.der"
    own.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    peer.write_bytes(P384_KEY_INFO + x + y)
    derive = ("openssl", "pkeyutl", "-derive", "-inkey", own, "-peerkey", peer, "-peerform", "DER")
    shared = subprocess.run(derive, check=True, capture_output=True).stdout
    assert len(shared) == 48
    master = kdf(shared, b"sev-master-secret", session[:16])
    wrapped = session[16:48]
    assert hmac.new(kdf(master, b"sev-kik"), wrapped, hashlib.sha256).digest() == session[64:96]
    decrypt = ("openssl", "enc", "-d", "-aes-128-ctr", "-K", kdf(master, b"sev-kek").hex(), "-iv", session[48:64].hex())
    both = subprocess.run(decrypt, check=True, capture_output=True, input=wrapped).stdout
    return both[:16], both[16:]


def test_a_second_implementation_opens_the_session(made: Platform, chain_file: Path, root: str, tmp_path: Path) -> None:
    """Test every byte of the blob with nothing of this project's but the certificate's offsets."""
    owner("session", chain_file, "--trust", root, "--policy", "es,nodbg", "--directory", tmp_path)
    godh, session = (base64.b64decode((tmp_path / f"vm_{name}.b64").read_text()) for name in ("godh", "session"))
    tek, tik = opened(made.pdh, godh, session, tmp_path)
    assert (tek, tik) == tuple((tmp_path / f"vm_{name}.bin").read_bytes() for name in ("tek", "tik"))
    assert hmac.new(tik, bytes((5, 0, 0, 0)), hashlib.sha256).digest() == session[96:]
    assert len(session) == 128
    # GODH as sevctl makes it: PDH for ECDH, api 0.0, both slots empty.
    assert godh[:0x10] == bytes.fromhex("01000000 00000000 03100000 03000000")
    empty = bytes.fromhex("00100000 00000000") + bytes(512)
    assert godh[0x414:] == 2 * empty


def test_sevctls_files_have_its_names_sizes_and_modes(chain_file: Path, root: str, tmp_path: Path) -> None:
    owner("session", chain_file, "--trust", root, "--name", "guest", "--directory", tmp_path)
    sizes = {"guest_godh.b64": 2780, "guest_session.b64": 172, "guest_tek.bin": 16, "guest_tik.bin": 16}
    for name, size in sizes.items():
        status = (tmp_path / name).stat()
        assert status.st_size == size
        assert (stat.S_IMODE(status.st_mode) == 0o600) == name.endswith(".bin")


def test_sev_tools_files(made: Platform, chain_file: Path, root: str, tmp_path: Path) -> None:
    owner("session", chain_file, "--trust", root, "--format", "sev-tool", "--directory", tmp_path)
    godh, session, tk = ((tmp_path / name).read_bytes() for name in ("godh.cert", "launch_blob.bin", "tmp_tk.bin"))
    assert (len(godh), len(session), len(tk)) == (2084, 128, 32)
    assert b"".join(opened(made.pdh, godh, session, tmp_path)) == tk
    assert stat.S_IMODE((tmp_path / "tmp_tk.bin").stat().st_mode) == 0o600


def test_firmware_takes_the_files_for_their_policy_alone(make_host: Callable[[str], Host], tmp_path: Path) -> None:
    host = make_host("a")
    evidence = host.evidence()
    pdh = tmp_path / "pdh.b64"
    pdh.write_bytes(base64.encodebytes(evidence.pdh))
    owner("session", pdh, "--unverified", "--policy", "nodbg,nosend,noks", "--directory", tmp_path)
    godh, session = (base64.b64decode((tmp_path / f"vm_{name}.b64").read_text()) for name in ("godh", "session"))

    def start(policy: int) -> int:
        memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), 1 << 20),)), bytes(32))
        return host.processor.launch_start(memory, policy, godh, session)

    with pytest.raises(FirmwareError) as refused:
        start(9)
    assert refused.value.status == Status.BAD_MEASUREMENT
    assert start(0xB)


def test_nothing_is_replaced_unless_it_is_asked_for(chain_file: Path, root: str, tmp_path: Path) -> None:
    """Test that a session whose keys are in use is not lost, nor left half replaced."""
    words = ("session", chain_file, "--trust", root, "--directory", tmp_path)
    (tmp_path / "vm_tik.bin").write_bytes(b"in use")
    assert "vm_tik.bin exists already; --force replaces it" in owner(*words, status=1).complaint
    assert (tmp_path / "vm_tik.bin").read_bytes() == b"in use"
    assert not list(tmp_path.glob("vm_*.b64"))
    assert not list(tmp_path.glob(".vm*"))
    owner(*words, "--force")
    assert len((tmp_path / "vm_tik.bin").read_bytes()) == 16
    assert stat.S_IMODE((tmp_path / "vm_tik.bin").stat().st_mode) == 0o600


def test_an_unproven_platform_gets_no_session_unless_it_is_asked_for(chain_file: Path, tmp_path: Path) -> None:
    words = ("session", chain_file, "--directory", tmp_path)
    assert "not one that is trusted here" in owner(*words, status=1).complaint
    assert not (tmp_path / "vm_session.b64").exists()
    warned = owner(*words, "--unverified")
    assert "WARNING: nothing proves that the platform is genuine" in warned.complaint


def test_a_forged_pdh_gets_no_session(made: Platform, chain_file: Path, root: str, tmp_path: Path) -> None:
    """Test the attack that chains are for: somebody's own PDH in front of a genuine chain."""
    stranger = make_platform(make_root(2048)).chain.pdh.encode()
    chain_file.write_bytes(stranger + chain_file.read_bytes()[2084:])
    complaint = owner("session", chain_file, "--trust", root, "--directory", tmp_path, status=1).complaint
    assert "the PDH carries no valid signature of the PEK" in complaint
    assert made.chain.pdh.encode() != stranger


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--policy", "what"], 1, "is no guest policy"),
        (["--policy", "0x40"], 1, "has reserved bits (0x40), which firmware refuses"),
        (["--name", "../x"], 1, "is no name for files"),
        (["--directory", "/nonexistent"], 1, "/nonexistent/vm_godh.b64 cannot be written"),
        (["--trust", "abc"], 1, "the fingerprint 'abc' is neither 32 bytes"),
        (["--ca", "/nonexistent"], 1, "the CA file /nonexistent cannot be read"),
        (["--format", "other"], 2, "--format"),
    ],
)
def test_mistakes_are_sentences(chain_file: Path, tmp_path: Path, words: list[str], status: int, reason: str) -> None:
    answer = owner("session", chain_file, "--unverified", "--directory", tmp_path, *words, status=status)
    assert reason in answer.complaint
    assert answer.out == ""
