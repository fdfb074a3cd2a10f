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
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from sealift.errors import SealError, StreamError
from sealift.sev import certificate
from sealift.sev.ca import CaCertificate, decode_ca_chain
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.keys import Algorithm, PublicKey

CERT_CHAIN_SIZE: Final = 3 * certificate.SIZE
"""Bytes of PEK||OCA||CEK, the second output of PDH_CERT_EXPORT."""

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
        _require_exchange(self.pdh)
        oca = _key(self.oca)
        _require(self.oca, Usage.OCA, oca)
        _require(self.pek, Usage.OCA, oca)
        _require(self.pdh, Usage.PEK, _key(self.pek))


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
        _require_exchange(self.pdh)
        self.verify_chip(roots)
        _require(self.pdh, Usage.PEK, _key(self.pek))

    def verify_chip(self, roots: Collection[bytes]) -> None:
        """Check PEK <- CEK <- ASK <- ARK and that the ARK is one of `roots`."""
        if self.ark.fingerprint() not in roots:
            raise SealError(f"the ARK {self.ark.key_id.hex()} is not a root this side trusts")
        ark, ask = _ca_key(self.ark), _ca_key(self.ask)
        if not self.ark.verifies(ark):
            raise SealError("the ARK's signature is not its own")
        if not self.ask.verifies(ark):
            raise SealError("the ASK's signature is not the ARK's")
        if all(slot.empty for slot in self.cek.signatures):
            raise SealError("the CEK is unsigned, as firmware exports it; put the manufacturer's copy in its place")
        _require(self.cek, Usage.ASK, ask)
        _require(self.pek, Usage.CEK, _key(self.cek))


def _split(cert_chain: bytes) -> tuple[bytes, bytes, bytes]:
    """PEK, OCA and CEK out of PEK||OCA||CEK."""
    if len(cert_chain) != CERT_CHAIN_SIZE:
        raise StreamError(f"PEK, OCA and CEK have {CERT_CHAIN_SIZE} bytes, not {len(cert_chain)}")
    first, second = certificate.SIZE, 2 * certificate.SIZE
    return cert_chain[:first], cert_chain[first:second], cert_chain[second:]


def _require_exchange(pdh: Certificate) -> None:
    if pdh.algorithm not in _ECDH:
        raise SealError(f"the PDH's algorithm is {pdh.algorithm.name}, which exchanges no keys")


def _decode(usage: Usage, data: bytes) -> Certificate:
    try:
        decoded = Certificate.decode(data)
    except StreamError as error:
        raise StreamError(f"the {usage.name} certificate does not parse") from error
    if decoded.usage is not usage:
        raise StreamError(f"a {decoded.usage.name} certificate stands where the {usage.name} belongs")
    return decoded


def _key(cert: Certificate) -> PublicKey:
    try:
        return cert.key()
    except StreamError as error:
        raise SealError(f"the {cert.usage.name}'s public key is invalid") from error


def _ca_key(cert: CaCertificate) -> rsa.RSAPublicKey:
    try:
        return cert.key()
    except StreamError as error:
        raise SealError(f"the {cert.usage.name}'s public key is invalid") from error


def _require(cert: Certificate, issuer: Usage, key: PublicKey) -> None:
    """Demand a signature of `issuer` in either slot."""
    if any(slot.half_empty for slot in cert.signatures):
        raise SealError(f"the {cert.usage.name} has a signature slot with a usage or an algorithm, but not both")
    if not cert.verifies(issuer, key):
        raise SealError(f"the {cert.usage.name} carries no valid signature of the {issuer.name}")
