"""A second implementation of what the vectors hold: P-384 in integers, the SEV API's derivation and MACs, OpenSSL.

It shares no code with Sealift, so that an error would have to be made twice. Slow, and not safe with real keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
from pathlib import Path

import judges

P = 2**384 - 2**128 - 2**96 + 2**32 - 1
N = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)
B = int("b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef", 16)
G = (
    int("aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7", 16),
    int("3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f", 16),
)
"""SEC 2, 2.5.1; the curve is y^2 = x^3 - 3x + B."""

Point = tuple[int, int] | None

_SPKI_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004")
"""DER of a P-384 public key up to its coordinates (RFC 5480)."""


def add(left: Point, right: Point) -> Point:
    """The group's law; None is its zero."""
    if left is None or right is None:
        return left or right
    (x1, y1), (x2, y2) = left, right
    if x1 == x2 and (y1 + y2) % P == 0:
        return None
    slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, P) if left == right else (y2 - y1) * pow(x2 - x1, -1, P)
    x = (slope * slope - x1 - x2) % P
    return x, (slope * (x1 - x) - y1) % P


def multiply(scalar: int, point: Point) -> Point:
    """`point` added to itself `scalar` times."""
    total: Point = None
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def certified_point(cert: bytes) -> tuple[int, int]:
    """The point in an SEV certificate, checked to be on the curve."""
    assert cert[0x10:0x14] == (2).to_bytes(4, "little"), "P-384"
    x, y = (int.from_bytes(cert[start : start + 72], "little") for start in (0x14, 0x5C))
    assert (y * y - x**3 + 3 * x - B) % P == 0
    return x, y


def ecdsa_holds(point: tuple[int, int], message: bytes, r: int, s: int) -> bool:
    """ECDSA with SHA-256 (FIPS 186-4, 6.4)."""
    if not (0 < r < N and 0 < s < N):
        return False
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    inverse = pow(s, -1, N)
    found = add(multiply(digest * inverse % N, G), multiply(r * inverse % N, point))
    return found is not None and found[0] % N == r


def derive(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    """16 bytes: one block of NIST SP 800-108 in counter mode, counter and length little-endian."""
    message = b"\x01\0\0\0" + label + b"\0" + context + b"\x80\0\0\0"
    return hmac.new(key, message, hashlib.sha256).digest()[:16]


def openssl(*arguments: str | Path, feed: bytes = b"") -> bytes:
    """What OpenSSL's command line prints."""
    command = [judges.program("openssl", "openssl"), *map(str, arguments)]
    return subprocess.run(command, input=feed, capture_output=True, check=True).stdout


def openssl_accepts(*arguments: str | Path) -> bool:
    """Whether OpenSSL's command line says yes."""
    command = [judges.program("openssl", "openssl"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def openssl_verifies(
    directory: Path, digest: str, public: bytes, message: bytes, signature: bytes, *options: str
) -> bool:
    """Whether ``openssl dgst`` takes a signature; the files for it are made in `directory`."""
    key, signed, body = (directory / name for name in ("key.pem", "signature", "body"))
    for path, content in ((key, public), (signed, signature), (body, message)):
        path.write_bytes(content)
    return openssl_accepts("dgst", f"-{digest}", *options, "-verify", key, "-signature", signed, body)


def aes_ctr(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR by OpenSSL's command line."""
    return openssl("enc", "-aes-128-ctr", "-K", key.hex(), "-iv", iv.hex(), feed=data)


def public_pem(point: tuple[int, int]) -> bytes:
    """The key in the form OpenSSL reads."""
    der = _SPKI_P384 + b"".join(number.to_bytes(48, "big") for number in point)
    return _pem("PUBLIC KEY", der)


def private_pem(scalar: int) -> bytes:
    """A private key likewise (RFC 5915), without its public half."""
    der = bytes.fromhex("303e0201010430") + scalar.to_bytes(48, "big") + bytes.fromhex("a00706052b81040022")
    return _pem("EC PRIVATE KEY", der)


def rsa_public_pem(modulus: int, exponent: int) -> bytes:
    """An RSA key likewise (RFC 8017, A.1.1, in RFC 5280's frame)."""
    key = _der(0x30, _integer(modulus) + _integer(exponent))
    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    return _pem("PUBLIC KEY", _der(0x30, algorithm + _der(0x03, b"\0" + key)))


def signature_der(r: int, s: int) -> bytes:
    """An ECDSA signature in the form OpenSSL reads."""
    return _der(0x30, b"".join(_integer(number) for number in (r, s)))


def der_signature(der: bytes) -> tuple[int, int]:
    """The numbers in an ECDSA signature as OpenSSL writes it."""
    assert (der[0], der[1], der[2]) == (0x30, len(der) - 2, 0x02)
    middle = 4 + der[3]
    assert (der[middle], der[middle + 1]) == (0x02, len(der) - middle - 2)
    return int.from_bytes(der[4:middle], "big"), int.from_bytes(der[middle + 2 :], "big")


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _der(tag: int, content: bytes) -> bytes:
    """An element of DER."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes(-(-size.bit_length() // 8), "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + base64.encodebytes(der) + f"-----END {kind}-----\n".encode()
