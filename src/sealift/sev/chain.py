r"""A platform's certificate chain, from its Diffie-Hellman key to the manufacturer's root.

::

    PDH <- PEK <- OCA <- OCA          who owns the platform
              \<- CEK <- ASK <- ARK   which genuine chip it is; the ARK must be a pinned root

``X <- Y`` reads "X is signed by Y". A root that only signs itself proves nothing, so the caller pins roots by
`CaCertificate.fingerprint`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import rsa

from sealift.errors import SealError, StreamError
from sealift.sev import certificate
from sealift.sev.ca import CaCertificate, decode_ca_chain
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm, PublicKey

CERT_CHAIN_SIZE: Final = 3 * certificate.SIZE
"""Bytes of PEK||OCA||CEK, the second output of PDH_CERT_EXPORT."""

AnyCertificate: TypeAlias = Certificate | CaCertificate

_ECDH: Final = frozenset({Algorithm.ECDH_SHA256, Algorithm.ECDH_SHA384})


@dataclass(frozen=True, slots=True)
class OwnerChain:
    """The branch of a platform's chain that says who owns it; `verify` says whether it holds together."""

    pdh: Certificate
    pek: Certificate
    oca: Certificate

    @classmethod
    def decode(cls, pdh: bytes, cert_chain: bytes) -> OwnerChain:
        """Read PDH, and PEK and OCA out of PEK||OCA||CEK.

        Raises:
            StreamError: a certificate does not parse, or is not the one that belongs in its place.
        """
        pek, oca, _ = _split(cert_chain)
        return cls(_decode(Usage.PDH, pdh), _decode(Usage.PEK, pek), _decode(Usage.OCA, oca))

    def verify(self) -> None:
        """Check PDH <- PEK <- OCA and that the OCA is self-signed.

        Raises:
            SealError: the sentence names the certificate that fails and why.
        """
        check_exchange(self.pdh)
        check_link(self.oca, self.oca)
        check_link(self.pek, self.oca)
        check_link(self.pdh, self.pek)


@dataclass(frozen=True, slots=True)
class PlatformChain:
    """The certificates of one platform; `verify` says whether they hold together."""

    pdh: Certificate
    pek: Certificate
    oca: Certificate
    cek: Certificate
    ask: CaCertificate
    ark: CaCertificate

    @classmethod
    def decode(cls, pdh: bytes, cert_chain: bytes, ca_chain: bytes) -> PlatformChain:
        """Read PDH, PEK||OCA||CEK and ASK||ARK.

        Raises:
            StreamError: a certificate does not parse, or is not the one that belongs in its place.
        """
        pek, oca, cek = _split(cert_chain)
        return cls(
            _decode(Usage.PDH, pdh),
            _decode(Usage.PEK, pek),
            _decode(Usage.OCA, oca),
            _decode(Usage.CEK, cek),
            *decode_ca_chain(ca_chain),
        )

    def verify(self, roots: Collection[bytes]) -> None:
        """Check every signature up to a root whose fingerprint is in `roots`.

        Raises:
            SealError: the sentence names the certificate that fails and why.
        """
        self.verify_owner()
        self.verify_chip(roots)

    def verify_owner(self) -> None:
        """Check PDH <- PEK <- OCA and that the OCA is self-signed: the branch a DOMAIN policy asks for."""
        OwnerChain(self.pdh, self.pek, self.oca).verify()

    def verify_platform(self, roots: Collection[bytes]) -> None:
        """Check PDH <- PEK <- CEK up to one of `roots`, whoever owns it: the branch an SEV policy asks for."""
        check_exchange(self.pdh)
        self.verify_chip(roots)
        check_link(self.pdh, self.pek)

    def verify_chip(self, roots: Collection[bytes]) -> None:
        """Check PEK <- CEK <- ASK <- ARK and that the ARK is one of `roots`."""
        if self.ark.fingerprint() not in roots:
            raise SealError(f"the ARK {self.ark.key_id.hex()} is not a root this side trusts")
        check_link(self.ark, self.ark)
        check_link(self.ask, self.ark)
        check_link(self.cek, self.ask)
        check_link(self.pek, self.cek)


def check_exchange(pdh: Certificate) -> None:
    """Demand that a PDH is for exchanging keys.

    Raises:
        SealError: its algorithm is another.
    """
    if pdh.algorithm not in _ECDH:
        raise SealError(f"the PDH's algorithm is {pdh.algorithm.name}, which exchanges no keys")


def check_link(subject: AnyCertificate, issuer: AnyCertificate) -> None:
    """Demand that `subject` carries a valid signature of `issuer`.

    Raises:
        SealError: the sentence names the certificate that fails and why.
    """
    if isinstance(subject, CaCertificate):
        _check_authority(subject, issuer)
        return
    if subject.usage is Usage.CEK and all(slot.empty for slot in subject.signatures):
        raise SealError("the CEK is unsigned, as firmware exports it; put the manufacturer's copy in its place")
    if any(slot.half_empty for slot in subject.signatures):
        raise SealError(f"the {subject.usage.name} has a signature slot with a usage or an algorithm, but not both")
    if not subject.verifies(issuer.usage, _key(issuer)):
        raise SealError(f"the {subject.usage.name} carries no valid signature of the {issuer.usage.name}")


def _check_authority(subject: CaCertificate, issuer: AnyCertificate) -> None:
    key = _key(issuer)
    if not isinstance(key, rsa.RSAPublicKey) or not subject.verifies(key):
        whose = "its own" if subject == issuer else f"the {issuer.usage.name}'s"
        raise SealError(f"the {subject.usage.name}'s signature is not {whose}")


def _split(cert_chain: bytes) -> tuple[bytes, bytes, bytes]:
    """PEK, OCA and CEK out of PEK||OCA||CEK."""
    if len(cert_chain) != CERT_CHAIN_SIZE:
        raise StreamError(f"PEK, OCA and CEK have {CERT_CHAIN_SIZE} bytes, not {len(cert_chain)}")
    first, second = certificate.SIZE, 2 * certificate.SIZE
    return cert_chain[:first], cert_chain[first:second], cert_chain[second:]


def _decode(usage: Usage, data: bytes) -> Certificate:
    try:
        decoded = Certificate.decode(data)
    except StreamError as error:
        raise StreamError(f"the {usage.name} certificate does not parse") from error
    if decoded.usage is not usage:
        raise StreamError(f"a {decoded.usage.name} certificate stands where the {usage.name} belongs")
    return decoded


def _key(cert: AnyCertificate) -> PublicKey:
    try:
        return cert.key()
    except StreamError as error:
        raise SealError(f"the {cert.usage.name}'s public key is invalid") from error
