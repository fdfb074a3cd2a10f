"""Write the vectors beside this file anew, with our own code: ``PYTHONPATH=src:tests python -m vectors.sev.generate``.

Keys, nonces and IVs are SHAKE-256 of a name, so that everything but signatures comes out the same each time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from sealift.sev import kdf, packet, session
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm
from sealift.sev.packet import Context
from sealift.sev.policy import Policy
from sealift.sev.report import AttestationReport
from sealift.sev.session import Session, TransportKeys

HERE = Path(__file__).parent


def _bytes(name: str, size: int) -> bytes:
    return hashlib.shake_256(f"sealift vector {name}".encode()).digest(size)


def _key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(_bytes(name, 56), "big") % (kdf.P384_ORDER - 1) + 1, ec.SECP384R1())


def _scalar(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_numbers().private_value.to_bytes(48, "big").hex()


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    return Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, key.public_key(), (1, 55)).encode()


def _altered(data: bytes, place: int) -> str:
    return (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]).hex()


def ecdh() -> list[dict[str, Any]]:
    """Two private keys, their PDH certificates, and Z."""
    made = []
    for number in range(4):
        source, target = _key(f"source {number}"), _key(f"target {number}")
        made.append(
            {
                "source_scalar": _scalar(source),
                "target_scalar": _scalar(target),
                "source_pdh": _certificate(source).hex(),
                "target_pdh": _certificate(target).hex(),
                "z": session.shared_secret(source, target.public_key()).hex(),
            }
        )
    return made


def sessions() -> list[dict[str, Any]]:
    """Sessions as SEND_START makes them, and the same with one bit altered."""
    made = []
    for number, policy in enumerate((0, 0x9, 0x3F, 0x3701_0035)):
        z = bytes.fromhex(ecdh()[number]["z"])
        transport = TransportKeys(_bytes(f"tek {number}", 16), _bytes(f"tik {number}", 16))
        nonce_and_iv = _bytes(f"nonce {number}", 16), _bytes(f"wrap iv {number}", 16)
        blob = Session.wrap_with(z, transport, Policy(policy), nonce_and_iv).encode()
        known = {"z": z.hex(), "tek": transport.tek.hex(), "tik": transport.tik.hex(), "policy": policy}
        made.append({**known, "session": blob.hex(), "status": 0})
        made += [{**known, "session": _altered(blob, place), "status": 0xB} for place in (0, 20, 64, 127)]
    return made


def packets() -> list[dict[str, Any]]:
    """Packets of SEND_UPDATE_DATA and, in both profiles, SEND_UPDATE_VMSA; altered ones too."""
    made = []
    for number, (context, size) in enumerate(
        [(Context.DATA, 16), (Context.DATA, 4096), (Context.DATA, 4096), (Context.VMSA, 4096)]
    ):
        transport = TransportKeys(_bytes(f"tek {number}", 16), _bytes(f"tik {number}", 16))
        # The last counter blocks before the counter wraps are where two implementations would part.
        iv = b"\xff" * 16 if number == 1 else _bytes(f"iv {number}", 16)
        plain = _bytes(f"content {number}", size)
        header, payload = packet.seal_with(transport, context, plain, iv)
        known = {"tek": transport.tek.hex(), "tik": transport.tik.hex(), "context": int(context), "plain": plain.hex()}
        sealed = header.encode()
        made.append({**known, "header": sealed.hex(), "payload": payload.hex(), "status": 0})
        made += [
            {**known, "header": _altered(sealed, place), "payload": payload.hex(), "status": 0xB} for place in (4, 51)
        ]
        made.append({**known, "header": sealed.hex(), "payload": _altered(payload, size - 1), "status": 0xB})
    return made


def reports() -> list[dict[str, Any]]:
    """Attestation reports, the PEK's certificate, and whether the one signed the other."""
    made = []
    for number, policy in enumerate((0, 0x9, 0x3701_0035)):
        pek = _key(f"pek {number}")
        certificate = Certificate.of(Usage.PEK, Algorithm.ECDSA_SHA256, pek.public_key(), (1, 55)).encode()
        digest = hashlib.sha256(_bytes(f"image {number}", 4096)).digest()
        report = AttestationReport(_bytes(f"mnonce {number}", 16), digest, Policy(policy)).signed(pek).encode()
        made.append({"pek": certificate.hex(), "report": report.hex(), "valid": True})
        made += [
            {"pek": certificate.hex(), "report": _altered(report, place), "valid": False}
            for place in (3, 48, 0x40, 0x88)
        ]
    return made


def main() -> None:
    """Write all of them."""
    for name, vectors in (("ecdh", ecdh()), ("session", sessions()), ("packet", packets()), ("report", reports())):
        (HERE / f"{name}.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
