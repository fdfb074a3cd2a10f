"""Files of certificates: any layout that tools write, and whether the certificates hold together.

::

    pdh         PDH                              pdh.cert; `pdh` of QEMU's query-sev-capabilities
    cert-chain  PEK||OCA||CEK                    cert_chain.cert; `cert-chain` of query-sev-capabilities
    platform    PDH||PEK||OCA||CEK               sevctl export
    full        PDH||PEK||OCA||CEK||ASK||ARK     sevctl export --full
    ca          ASK||ARK                         what AMD publishes for a generation

A reader takes certificates in any order, each at most once, raw or as base64 text. AMD's first root was distributed
without its signature (576 bytes); it is read, and its link to itself fails.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from sealift.errors import SealError, StreamError, UserError
from sealift.sev import ca, certificate, chain
from sealift.sev.ca import CaCertificate
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.chain import AnyCertificate, PlatformChain
from sealift.sev.text import decode_base64

SIZE_LIMIT: Final = 1 << 16
"""Bytes of a file of certificates: the longest layout has 11,536, or 15,382 as base64 text."""

_ORDER: Final = (Usage.PDH, Usage.PEK, Usage.OCA, Usage.CEK, Usage.ASK, Usage.ARK)
_SEV_HEAD: Final = struct.Struct("<IBBHI")
_SEV_USAGES: Final = frozenset({Usage.PDH, Usage.PEK, Usage.OCA, Usage.CEK})
_CA_HEAD: Final = struct.Struct("<I16s16sI16sII")

LINKS: Final = (
    (Usage.PDH, Usage.PEK),
    (Usage.PEK, Usage.OCA),
    (Usage.OCA, Usage.OCA),
    (Usage.PEK, Usage.CEK),
    (Usage.CEK, Usage.ASK),
    (Usage.ASK, Usage.ARK),
    (Usage.ARK, Usage.ARK),
)
"""Every signature of a complete chain: (signed, signer)."""


class Layout(Enum):
    """Which certificates a file holds, in order."""

    PDH = "pdh"
    CERT_CHAIN = "cert-chain"
    PLATFORM = "platform"
    FULL = "full"
    CA = "ca"

    @property
    def usages(self) -> tuple[Usage, ...]:
        """The certificates."""
        return _LAYOUTS[self]


_LAYOUTS: Final[dict[Layout, tuple[Usage, ...]]] = {
    Layout.PDH: _ORDER[:1],
    Layout.CERT_CHAIN: _ORDER[1:4],
    Layout.PLATFORM: _ORDER[:4],
    Layout.FULL: _ORDER,
    Layout.CA: _ORDER[4:],
}


@dataclass(frozen=True, slots=True)
class Link:
    """One signature that ought to be there; `fault` is empty if it is valid, and says what is wrong if not."""

    subject: Usage
    issuer: Usage
    fault: str = ""


@dataclass(frozen=True, slots=True)
class CertificateSet:
    """Certificates of one platform and its manufacturer, each at most once."""

    certificates: dict[Usage, AnyCertificate]

    @classmethod
    def decode(cls, data: bytes) -> CertificateSet:
        """Read a file's content, raw or base64.

        Raises:
            StreamError: it holds something else, a certificate twice, or a damaged one; the byte is named.
        """
        if len(data) > SIZE_LIMIT:
            raise StreamError(f"{len(data)} bytes are more than any chain of certificates has")
        raw = decode_base64(data) or data
        return cls.of(_read(raw))

    @classmethod
    def of(cls, certificates: Iterable[AnyCertificate]) -> CertificateSet:
        """A set of these.

        Raises:
            StreamError: there are none, or two of a kind.
        """
        found: dict[Usage, AnyCertificate] = {}
        for cert in certificates:
            if cert.usage in found:
                raise StreamError(f"there are two {cert.usage.name} certificates; one platform has one")
            found[cert.usage] = cert
        if not found:
            raise StreamError("there is no certificate in it")
        return cls({usage: found[usage] for usage in _ORDER if usage in found})

    def joined(self, other: CertificateSet) -> CertificateSet:
        """Both sets in one.

        Raises:
            StreamError: a certificate is in both and not the same.
        """
        added = (cert for usage, cert in other.certificates.items() if self.certificates.get(usage) != cert)
        return CertificateSet.of((*self.certificates.values(), *added))

    @property
    def layout(self) -> Layout | None:
        """The layout that has exactly these certificates; None if none has."""
        held = tuple(self.certificates)
        return next((layout for layout in Layout if layout.usages == held), None)

    @property
    def pdh(self) -> Certificate | None:
        """The PDH."""
        found = self.certificates.get(Usage.PDH)
        return found if isinstance(found, Certificate) else None

    @property
    def root(self) -> CaCertificate | None:
        """The ARK."""
        found = self.certificates.get(Usage.ARK)
        return found if isinstance(found, CaCertificate) else None

    def missing(self, layout: Layout = Layout.FULL) -> tuple[Usage, ...]:
        """What a layout has and this set has not."""
        return tuple(usage for usage in layout.usages if usage not in self.certificates)

    def encode(self, layout: Layout) -> bytes:
        """The certificates of a layout, raw.

        Raises:
            UserError: one is missing.
        """
        if missing := self.missing(layout):
            names = ", ".join(usage.name for usage in missing)
            raise UserError(f"the layout {layout.value} needs certificates that were not given: {names}")
        return b"".join(self.certificates[usage].encode() for usage in layout.usages)

    def links(self) -> list[Link]:
        """Every signature whose both ends are here, checked."""
        pairs = ((a, b) for a, b in LINKS if a in self.certificates and b in self.certificates)
        return [Link(*pair, self._fault(*pair)) for pair in pairs]

    def platform(self) -> PlatformChain:
        """The complete chain of a platform.

        Raises:
            UserError: a certificate is missing.
        """
        raw = {layout: self.encode(layout) for layout in (Layout.PDH, Layout.CERT_CHAIN, Layout.CA)}
        return PlatformChain.decode(raw[Layout.PDH], raw[Layout.CERT_CHAIN], raw[Layout.CA])

    def _fault(self, subject: Usage, issuer: Usage) -> str:
        signed = self.certificates[subject]
        try:
            if isinstance(signed, Certificate) and signed.usage is Usage.PDH:
                chain.check_exchange(signed)
            chain.check_link(signed, self.certificates[issuer])
        except SealError as error:
            return str(error)
        return ""


def _read(data: bytes) -> Iterator[AnyCertificate]:
    """The certificates one after another."""
    start = 0
    while start < len(data):
        try:
            cert, size = _first(data[start:])
        except StreamError as error:
            raise StreamError(f"no certificate can be read at byte {start}") from error
        yield cert
        start += size


def _first(data: bytes) -> tuple[AnyCertificate, int]:
    """The certificate that `data` begins with, and its size.

    The two formats share only their version; 32 random bits of a key id stand where the usage of the other is.
    """
    if len(data) >= _SEV_HEAD.size and _SEV_HEAD.unpack_from(data)[-1] in _SEV_USAGES:
        return Certificate.decode(data[: certificate.SIZE]), certificate.SIZE
    if len(data) < _CA_HEAD.size:
        raise StreamError(f"{len(data)} bytes are too few for a certificate")
    number = _CA_HEAD.unpack_from(data)[-1] // 8
    size = _CA_HEAD.size + 3 * number
    if number in ca.KEY_SIZES and len(data) == size - number:
        return replace(CaCertificate.decode(data + bytes(number)), signature=b""), len(data)
    return CaCertificate.decode(data[:size]), min(size, len(data))
