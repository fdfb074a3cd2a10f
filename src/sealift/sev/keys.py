"""Public keys and signatures in the form SEV certificates carry them: little-endian numbers in fixed fields.

An EC key is {curve u32, Qx 72, Qy 72}, an RSA key {modulus bits u32, exponent 512, modulus 512}; both fill a
field of 1028 bytes with zeros. An EC signature is {r 72, s 72} and an RSA signature one number of the modulus's
size; both fill 512 bytes. RSA signatures are PSS with the salt as long as the digest: AMD's own are, and verifiers
exist that take nothing else.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from sealift.errors import StreamError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

PUBLIC_KEY_SIZE: Final = 1028
SIGNATURE_SIZE: Final = 512
NUMBER_SIZE: Final = 72
"""Bytes of one EC number, room for curves up to 576 bits."""
_RSA_NUMBER_SIZE: Final = 512
_RSA_BITS: Final = frozenset({2048, 4096})
_CURVES: Final[dict[int, ec.EllipticCurve]] = {1: ec.SECP256R1(), 2: ec.SECP384R1()}


class Algorithm(IntEnum):
    """Algorithm of a key or signature (AMD SEV API, "Algorithm Enumeration")."""

    NONE = 0x000
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103

    @property
    def digest(self) -> hashes.HashAlgorithm:
        """The hash this algorithm signs."""
        return hashes.SHA384() if self & 0x100 else hashes.SHA256()

    @property
    def is_rsa(self) -> bool:
        """Whether keys of this algorithm are RSA keys."""
        return self & 0xFF == 1

    @property
    def signs(self) -> bool:
        """Whether this is a signature algorithm."""
        return self & 0xFF in {1, 2}


def generate() -> ec.EllipticCurvePrivateKey:
    """A fresh P-384 key, the curve of every SEV key."""
    return ec.generate_private_key(ec.SECP384R1())


def encode_public_key(key: PublicKey) -> bytes:
    """The 1028-byte field of a certificate.

    Raises:
        ValueError: a curve or an RSA size that SEV does not know.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise ValueError(f"SEV has no RSA keys of {key.key_size} bits")
        numbers = key.public_numbers()
        return (
            key.key_size.to_bytes(4, "little")
            + numbers.e.to_bytes(_RSA_NUMBER_SIZE, "little")
            + numbers.n.to_bytes(_RSA_NUMBER_SIZE, "little")
        )
    codes = [code for code, curve in _CURVES.items() if curve.name == key.curve.name]
    if not codes:
        raise ValueError(f"SEV does not know the curve {key.curve.name}")
    point = key.public_numbers()
    field = codes[0].to_bytes(4, "little") + b"".join(
        number.to_bytes(NUMBER_SIZE, "little") for number in (point.x, point.y)
    )
    return field.ljust(PUBLIC_KEY_SIZE, b"\0")


def decode_public_key(algorithm: Algorithm, field: bytes) -> PublicKey:
    """Read the 1028-byte field of a certificate.

    Raises:
        StreamError: no key of that algorithm, an unknown curve or a point that is not on it.
    """
    if algorithm is Algorithm.NONE:
        raise StreamError("the certificate says it holds no key")
    return _decode_rsa(field) if algorithm.is_rsa else _decode_ec(field)


def _decode_rsa(field: bytes) -> rsa.RSAPublicKey:
    bits = int.from_bytes(field[:4], "little")
    exponent = int.from_bytes(field[4 : 4 + _RSA_NUMBER_SIZE], "little")
    modulus = int.from_bytes(field[4 + _RSA_NUMBER_SIZE :], "little")
    return rsa_public_key(bits, exponent, modulus)


def rsa_public_key(bits: int, exponent: int, modulus: int) -> rsa.RSAPublicKey:
    """An RSA key from its numbers.

    Raises:
        StreamError: a size SEV does not know, or numbers that make no RSA key of that size.
    """
    if bits not in _RSA_BITS or modulus.bit_length() != bits:
        raise StreamError(f"an RSA modulus of {modulus.bit_length()} bits in a field of {bits} bits is no key")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise StreamError("the RSA exponent and modulus make no key") from error


def _decode_ec(field: bytes) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(int.from_bytes(field[:4], "little"))
    if curve is None:
        raise StreamError(f"curve {int.from_bytes(field[:4], 'little')} is neither P-256 nor P-384")
    x, y = (int.from_bytes(field[start : start + NUMBER_SIZE], "little") for start in (4, 4 + NUMBER_SIZE))
    if any(field[4 + 2 * NUMBER_SIZE :]):
        raise StreamError("the field of the EC key holds more than the key")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError as error:
        raise StreamError(f"the EC key is no point of {curve.name}") from error


def sign(key: PrivateKey, algorithm: Algorithm, message: bytes) -> bytes:
    """The 512-byte signature field for `message`.

    Raises:
        ValueError: an algorithm that does not sign, or not with this kind of key.
    """
    if not algorithm.signs or algorithm.is_rsa != isinstance(key, rsa.RSAPrivateKey):
        raise ValueError(f"{algorithm.name} does not sign with this kind of key")
    if isinstance(key, rsa.RSAPrivateKey):
        return sign_rsa(key, algorithm.digest, message).ljust(SIGNATURE_SIZE, b"\0")
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(algorithm.digest)))
    numbers = r.to_bytes(NUMBER_SIZE, "little") + s.to_bytes(NUMBER_SIZE, "little")
    return numbers.ljust(SIGNATURE_SIZE, b"\0")


def verify(key: PublicKey, algorithm: Algorithm, message: bytes, field: bytes) -> bool:
    """Whether the 512-byte signature `field` is `key`'s over `message`; False too when key and algorithm differ."""
    if not algorithm.signs or algorithm.is_rsa != isinstance(key, rsa.RSAPublicKey):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        size = key.key_size // 8
        return not any(field[size:]) and verify_rsa(key, algorithm.digest, message, field[:size])
    if any(field[2 * NUMBER_SIZE :]):
        return False
    r, s = (int.from_bytes(field[start : start + NUMBER_SIZE], "little") for start in (0, NUMBER_SIZE))
    try:
        key.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(algorithm.digest))
    except InvalidSignature:
        return False
    return True


def sign_rsa(key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm, message: bytes) -> bytes:
    """RSA-PSS signature, little-endian, as long as the modulus."""
    return key.sign(message, _pss(digest), digest)[::-1]


def verify_rsa(key: rsa.RSAPublicKey, digest: hashes.HashAlgorithm, message: bytes, signature: bytes) -> bool:
    """Whether a little-endian RSA-PSS signature is `key`'s over `message`."""
    try:
        key.verify(signature[::-1], message, _pss(digest), digest)
    except InvalidSignature:
        return False
    return True


def _pss(digest: hashes.HashAlgorithm) -> padding.PSS:
    return padding.PSS(padding.MGF1(digest), digest.digest_size)
