"""Vectors for what no public vectors exist of, verified by a second implementation and by OpenSSL, then met by ours."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import FirmwareError
from sealift.sev import packet, session
from sealift.sev.certificate import Certificate
from sealift.sev.packet import Context, Header
from sealift.sev.policy import Policy
from sealift.sev.report import AttestationReport
from sealift.sev.session import Session, TransportKeys
from sealift.sev.status import Status
from vectors.sev import generate

from . import independent

VECTORS = Path(generate.__file__).parent

Vector = dict[str, Any]


def _load(name: str) -> list[Vector]:
    vectors: list[Vector] = json.loads((VECTORS / f"{name}.json").read_text())
    return vectors


def _hex(vector: Vector, *names: str) -> list[bytes]:
    return [bytes.fromhex(vector[name]) for name in names]


def _transport(vector: Vector) -> TransportKeys:
    return TransportKeys(*_hex(vector, "tek", "tik"))


# --- the vectors are right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", _load("ecdh"))
def test_z_in_plain_integers(vector: Vector) -> None:
    """Test that both sides come to Z, and that certificates hold the keys of the scalars."""
    points = [independent.certified_point(cert) for cert in _hex(vector, "source_pdh", "target_pdh")]
    scalars = [int(vector[name], 16) for name in ("source_scalar", "target_scalar")]
    for scalar, own, other in zip(scalars, points, reversed(points), strict=True):
        assert independent.multiply(scalar, independent.G) == own
        product = independent.multiply(scalar, other)
        assert product is not None
        assert product[0].to_bytes(48, "big").hex() == vector["z"]


@pytest.mark.parametrize("vector", _load("ecdh"))
def test_z_by_openssl(vector: Vector, tmp_path: Path) -> None:
    own, peer = tmp_path / "own.pem", tmp_path / "peer.pem"
    own.write_bytes(independent.private_pem(int(vector["source_scalar"], 16)))
    peer.write_bytes(independent.public_pem(independent.certified_point(bytes.fromhex(vector["target_pdh"]))))
    assert independent.openssl("pkeyutl", "-derive", "-inkey", own, "-peerkey", peer).hex() == vector["z"]


@pytest.mark.parametrize("vector", _load("session"))
def test_sessions_by_hmac_and_openssl(vector: Vector) -> None:
    """Test each field of the blob by its offset; altered blobs fail exactly where they were altered."""
    z, blob, tek, tik = _hex(vector, "z", "session", "tek", "tik")
    nonce, wrap_tk, wrap_iv, wrap_mac, policy_mac = blob[:16], blob[16:48], blob[48:64], blob[64:96], blob[96:]
    master = independent.derive(z, b"sev-master-secret", nonce)
    kek, kik = independent.derive(master, b"sev-kek"), independent.derive(master, b"sev-kik")
    wrapped = hmac.new(kik, wrap_tk, "sha256").digest() == wrap_mac
    unwrapped = independent.aes_ctr(kek, wrap_iv, wrap_tk) == tek + tik
    bound = hmac.new(tik, vector["policy"].to_bytes(4, "little"), "sha256").digest() == policy_mac
    assert (wrapped and unwrapped and bound) == (vector["status"] == Status.SUCCESS)


@pytest.mark.parametrize("vector", _load("packet"))
def test_packets_by_hmac_and_openssl(vector: Vector) -> None:
    tek, tik, header, payload, plain = _hex(vector, "tek", "tik", "header", "payload", "plain")
    flags, iv, mac = header[:4], header[4:20], header[20:]
    length = len(payload).to_bytes(4, "little")
    message = bytes([vector["context"]]) + flags + iv + length + length + payload
    authentic = hmac.new(tik, message, "sha256").digest() == mac
    assert authentic == (vector["status"] == Status.SUCCESS)
    if authentic:
        assert (flags, independent.aes_ctr(tek, iv, payload)) == (bytes(4), plain)


def _report_parts(vector: Vector) -> tuple[tuple[int, int], bytes, int, int]:
    pek, report = _hex(vector, "pek", "report")
    assert report[0x34:0x40].hex() == "02100000" + "02000000" + "00000000"
    r, s = (int.from_bytes(report[start : start + 72], "little") for start in (0x40, 0x88))
    return independent.certified_point(pek), report[:0x34], r, s


@pytest.mark.parametrize("vector", _load("report"))
def test_reports_in_plain_integers(vector: Vector) -> None:
    assert independent.ecdsa_holds(*_report_parts(vector)) == vector["valid"]


@pytest.mark.parametrize("vector", _load("report"))
def test_reports_by_openssl(vector: Vector, tmp_path: Path) -> None:
    point, message, r, s = _report_parts(vector)
    key, signature = independent.public_pem(point), independent.signature_der(r, s)
    accepted = independent.openssl_verifies(tmp_path, "sha256", key, message, signature)
    assert accepted == vector["valid"]


# --- and ours is right by them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", _load("ecdh"))
def test_our_z(vector: Vector) -> None:
    source, target = (
        ec.derive_private_key(int(vector[name], 16), ec.SECP384R1()) for name in ("source_scalar", "target_scalar")
    )
    source_pdh, target_pdh = _hex(vector, "source_pdh", "target_pdh")
    assert session.shared_secret(source, session.peer_key(target_pdh)).hex() == vector["z"]
    assert session.shared_secret(target, session.peer_key(source_pdh)).hex() == vector["z"]


def _status(error: FirmwareError | None) -> int:
    return Status.SUCCESS if error is None else error.status


@pytest.mark.parametrize("vector", _load("session"))
def test_our_sessions(vector: Vector) -> None:
    z, blob = _hex(vector, "z", "session")
    refused = None
    try:
        opened = Session.decode(blob).unwrap(z, Policy(vector["policy"]))
    except FirmwareError as error:
        refused = error
    else:
        assert opened == _transport(vector)
        nonce_and_iv = blob[:16], blob[48:64]
        assert Session.wrap_with(z, opened, Policy(vector["policy"]), nonce_and_iv).encode() == blob
    assert _status(refused) == vector["status"]


@pytest.mark.parametrize("vector", _load("packet"))
def test_our_packets(vector: Vector) -> None:
    header, payload, plain = _hex(vector, "header", "payload", "plain")
    context, refused = Context(vector["context"]), None
    try:
        assert packet.unseal(_transport(vector), context, Header.decode(header), payload) == plain
    except FirmwareError as error:
        refused = error
    else:
        sealed, hidden = packet.seal_with(_transport(vector), context, plain, header[4:20])
        assert (sealed.encode(), hidden) == (header, payload)
    assert _status(refused) == vector["status"]


@pytest.mark.parametrize("vector", _load("report"))
def test_our_reports(vector: Vector) -> None:
    pek, report = _hex(vector, "pek", "report")
    decoded = AttestationReport.decode(report)
    assert decoded.encode() == report
    assert decoded.verifies(Certificate.decode(pek).key()) == vector["valid"]


def test_the_generator_makes_these_vectors() -> None:
    """Test that the files are what their generator writes, but for signatures, which are random."""
    for name, made in (("ecdh", generate.ecdh()), ("session", generate.sessions()), ("packet", generate.packets())):
        assert made == _load(name)
    bodies = [[vector["report"][: 2 * 0x40] for vector in vectors] for vectors in (generate.reports(), _load("report"))]
    assert bodies[0] == bodies[1]
