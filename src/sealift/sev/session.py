"""Launch sessions: how transport keys reach a secure processor that nobody else can read them from.

::

    owner                                          firmware
    GODH key d, TEK, TIK, policy
    Z = ECDH(d, PDH)                               Z = ECDH(PDH private key, GODH)
    master = KDF(Z, nonce); KEK, KIK = KDF(master)
    WRAP_TK  = AES-128-CTR(KEK, TEK || TIK)
    WRAP_MAC = HMAC(KIK, WRAP_TK)
    POLICY_MAC = HMAC(TIK, policy)     ── 128 bytes + GODH certificate ──►  LAUNCH_START

SEND_START and RECEIVE_START use the same blob, with the sending platform's PDH in the GODH's place
(AMD SEV API, "LAUNCH_START" and "Transport keys").
"""

from __future__ import annotations

import hmac
import os
import struct
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sealift.errors import StreamError
from sealift.sev import certificate, kdf, keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm
from sealift.sev.policy import Policy
from sealift.sev.status import Status, failure

SIZE: Final = 128
NONCE_SIZE: Final = 16

_LAYOUT: Final = struct.Struct("<16s32s16s32s32s")
_CURVE: Final = "secp384r1"


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """The keys of one session; never shown.

    Attributes:
        tek: encrypts (AES-128-CTR).
        tik: authenticates (HMAC-SHA256).
    """

    tek: bytes = field(repr=False)
    tik: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> TransportKeys:
        """Random keys."""
        return cls(os.urandom(kdf.KEY_SIZE), os.urandom(kdf.KEY_SIZE))

    @classmethod
    def absent(cls) -> TransportKeys:
        """What firmware holds for a guest launched without an owner: zeros, which protect nothing."""
        return cls(bytes(kdf.KEY_SIZE), bytes(kdf.KEY_SIZE))


@dataclass(frozen=True, slots=True)
class Session:
    """The session blob, 128 bytes; all of it is public."""

    nonce: bytes
    wrap_tk: bytes
    wrap_iv: bytes
    wrap_mac: bytes
    policy_mac: bytes

    @classmethod
    def decode(cls, data: bytes) -> Session:
        """Read 128 bytes.

        Raises:
            StreamError: wrong length.
        """
        if len(data) != SIZE:
            raise StreamError(f"a launch session has {SIZE} bytes, not {len(data)}")
        return cls(*_LAYOUT.unpack(data))

    def encode(self) -> bytes:
        """The blob's 128 bytes."""
        return _LAYOUT.pack(self.nonce, self.wrap_tk, self.wrap_iv, self.wrap_mac, self.policy_mac)

    @classmethod
    def wrap(cls, shared_secret: bytes, transport: TransportKeys, policy: Policy) -> Session:
        """Wrap transport keys and bind them to a policy, with a fresh nonce and IV."""
        return cls.wrap_with(shared_secret, transport, policy, (os.urandom(NONCE_SIZE), os.urandom(NONCE_SIZE)))

    @classmethod
    def wrap_with(
        cls, shared_secret: bytes, transport: TransportKeys, policy: Policy, nonce_and_iv: tuple[bytes, bytes]
    ) -> Session:
        """`wrap` with given nonce and IV, for known answers; an IV must never repeat under one secret."""
        nonce, iv = nonce_and_iv
        master = kdf.master_secret(shared_secret, nonce)
        wrap_tk = ctr(kdf.encryption_key(master), iv, transport.tek + transport.tik)
        wrap_mac = hmac.digest(kdf.integrity_key(master), wrap_tk, "sha256")
        return cls(nonce, wrap_tk, iv, wrap_mac, policy_mac(transport, policy))

    def unwrap(self, shared_secret: bytes, policy: Policy) -> TransportKeys:
        """Check both MACs and return the transport keys.

        Raises:
            FirmwareError: BAD_MEASUREMENT, WRAP_MAC before POLICY_MAC as in firmware.
        """
        master = kdf.master_secret(shared_secret, self.nonce)
        expected = hmac.digest(kdf.integrity_key(master), self.wrap_tk, "sha256")
        if not hmac.compare_digest(expected, self.wrap_mac):
            raise failure(Status.BAD_MEASUREMENT, "the session's WRAP_MAC fails; was it made for this PDH?")
        plain = ctr(kdf.encryption_key(master), self.wrap_iv, self.wrap_tk)
        transport = TransportKeys(plain[: kdf.KEY_SIZE], plain[kdf.KEY_SIZE :])
        if not hmac.compare_digest(policy_mac(transport, policy), self.policy_mac):
            raise failure(
                Status.BAD_MEASUREMENT, f"the session's POLICY_MAC fails: it was not made for policy {int(policy):#x}"
            )
        return transport


@dataclass(frozen=True, slots=True)
class OwnerSession:
    """What an owner makes for one launch: the two public blobs, and the keys it keeps."""

    dh_cert: bytes
    session: bytes
    transport: TransportKeys


def offer(pdh: Certificate, policy: Policy) -> OwnerSession:
    """The owner's side: a session for the platform whose (verified) PDH certificate is given.

    The Diffie-Hellman certificate is unsigned, as sevctl makes it; firmware does not look at its signatures.

    Raises:
        FirmwareError: INVALID_CERTIFICATE, the PDH is no P-384 key for ECDH.
    """
    private = keys.generate()
    transport = TransportKeys.fresh()
    session = Session.wrap(shared_secret(private, exchange_key(pdh)), transport, policy)
    godh = Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, private.public_key())
    return OwnerSession(godh.encode(), session.encode(), transport)


def accept(private: ec.EllipticCurvePrivateKey, dh_cert: bytes, session: bytes, policy: Policy) -> TransportKeys:
    """Firmware's side: the transport keys out of a session, checked in firmware's order.

    Args:
        private: the platform's PDH key.
        dh_cert: the owner's GODH certificate, or the sending platform's PDH certificate.
        session: the session blob.
        policy: the policy the command was given; the session must have been made for it.

    Raises:
        FirmwareError: INVALID_LENGTH (session, then certificate), INVALID_CERTIFICATE, BAD_MEASUREMENT.
    """
    if len(session) != SIZE:
        raise failure(Status.INVALID_LENGTH, f"the session has {SIZE} bytes, not {len(session)}")
    secret = shared_secret(private, peer_key(dh_cert))
    return Session.decode(session).unwrap(secret, policy)


def peer_key(dh_cert: bytes) -> ec.EllipticCurvePublicKey:
    """The key of an encoded certificate for the exchange, as firmware is given it.

    Raises:
        FirmwareError: INVALID_LENGTH, INVALID_CERTIFICATE.
    """
    if len(dh_cert) != certificate.SIZE:
        detail = f"the Diffie-Hellman certificate has {certificate.SIZE} bytes, not {len(dh_cert)}"
        raise failure(Status.INVALID_LENGTH, detail)
    try:
        peer = Certificate.decode(dh_cert)
    except StreamError as error:
        raise failure(Status.INVALID_CERTIFICATE, "the Diffie-Hellman certificate does not parse") from error
    return exchange_key(peer)


def exchange_key(cert: Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate that is fit for the exchange; its signatures are not looked at.

    Raises:
        FirmwareError: INVALID_CERTIFICATE.
    """
    if (cert.usage, cert.algorithm) != (Usage.PDH, Algorithm.ECDH_SHA256):
        detail = f"a {cert.usage.name} key for {cert.algorithm.name} stands where a PDH for ECDH_SHA256 belongs"
        raise failure(Status.INVALID_CERTIFICATE, detail)
    try:
        key = cert.key()
    except StreamError as error:
        raise failure(Status.INVALID_CERTIFICATE, "the Diffie-Hellman key is invalid") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVE:
        raise failure(Status.INVALID_CERTIFICATE, "the Diffie-Hellman key is not on P-384")
    return key


def shared_secret(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    """Z: the X coordinate of the product, 48 bytes, big-endian."""
    return private.exchange(ec.ECDH(), public)


def policy_mac(transport: TransportKeys, policy: Policy) -> bytes:
    """POLICY_MAC: binds a session to a policy."""
    return hmac.digest(transport.tik, policy.encode(), "sha256")


def ctr(key: bytes, iv: bytes, data: bytes | memoryview) -> bytes:
    """AES-128-CTR, which is its own inverse; the counter is the IV as a 128-bit big-endian number."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()
