"""A made-up manufacturer and platform: every key is fresh, none is AMD's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sealift.sev import keys
from sealift.sev.ca import CaCertificate
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.chain import PlatformChain
from sealift.sev.keys import Algorithm


@dataclass(frozen=True)
class Root:
    """An ARK and the ASK it signed."""

    bits: int
    ark: CaCertificate
    ask: CaCertificate
    ask_key: rsa.RSAPrivateKey

    @property
    def algorithm(self) -> Algorithm:
        """What the ASK signs with."""
        return Algorithm.RSA_SHA256 if self.bits == 2048 else Algorithm.RSA_SHA384


@dataclass(frozen=True, repr=False)  # thousands of hexadecimal digits help nobody
class Platform:
    """A platform's chain with the private keys behind it."""

    chain: PlatformChain
    cek: ec.EllipticCurvePrivateKey
    oca: ec.EllipticCurvePrivateKey
    pek: ec.EllipticCurvePrivateKey
    pdh: ec.EllipticCurvePrivateKey


def make_root(bits: int) -> Root:
    """A fresh root of 2048 (as Naples) or 4096 bits."""
    ark_key, ask_key = (rsa.generate_private_key(65537, bits) for _ in range(2))
    ark_id, ask_id = b"test root".ljust(16, b"."), b"test signer".ljust(16, b".")
    ark = CaCertificate.of(Usage.ARK, ark_key.public_key(), ark_id, ark_id).signed(ark_key)
    ask = CaCertificate.of(Usage.ASK, ask_key.public_key(), ask_id, ark_id).signed(ark_key)
    return Root(bits, ark, ask, ask_key)


def make_platform(root: Root) -> Platform:
    """A fresh platform certified by `root`; its PEK carries the OCA's signature first, as real ones do."""
    cek, oca, pek, pdh = (keys.generate() for _ in range(4))
    ecdsa, api = Algorithm.ECDSA_SHA256, (1, 55)
    chain = PlatformChain(
        Certificate.of(Usage.PDH, Algorithm.ECDH_SHA256, pdh.public_key(), api).signed(Usage.PEK, pek, ecdsa),
        Certificate.of(Usage.PEK, ecdsa, pek.public_key(), api)
        .signed(Usage.OCA, oca, ecdsa)
        .signed(Usage.CEK, cek, ecdsa),
        Certificate.of(Usage.OCA, ecdsa, oca.public_key(), api).signed(Usage.OCA, oca, ecdsa),
        Certificate.of(Usage.CEK, ecdsa, cek.public_key()).signed(Usage.ASK, root.ask_key, root.algorithm),
        root.ask,
        root.ark,
    )
    return Platform(chain, cek, oca, pek, pdh)


@pytest.fixture(scope="session")
def naples_root() -> Root:
    """A root with 2048-bit keys and SHA-256."""
    return make_root(2048)


@pytest.fixture(scope="session")
def rome_root() -> Root:
    """A root with 4096-bit keys and SHA-384."""
    return make_root(4096)


@pytest.fixture(scope="session")
def platform(rome_root: Root) -> Platform:
    """One platform; tests alter copies of its certificates."""
    return make_platform(rome_root)
