"""A host's persistent identity: the chip, and the keys its firmware keeps. Two hosts are two directories.

::

    chip.secret        unique to the chip, made once; endorsement key (CEK) and id (GET_ID) are derived from it
    endorsement.cert   CEK as the manufacturer signed it || ASK || ARK
    platform.keys      OCA, PEK and PDH: what firmware's non-volatile memory holds

A platform process is one socket of a host, so several share the directory. Whoever has guests holds the lock for
use; making or changing keys needs it alone, but for guests of the very process that changes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import SealError, StreamError, UserError
from sealift.privatefiles import Access, Lock, PrivateDirectory
from sealift.sev import certificate, kdf
from sealift.sev.ca import decode_ca_chain
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.chain import PlatformChain
from sealift.sev.keys import Algorithm
from sealift.sev.status import Status, failure
from sealift.silicon.processor import platformkeys
from sealift.silicon.processor.manufacturer import CA_CHAIN_SIZE, Manufacturer
from sealift.silicon.processor.platformkeys import PlatformKeys

CHIP_SECRET_SIZE: Final = 32
CEK_API: Final = (0, 14)
"""API version in every CEK certificate that AMD's key server hands out."""

CHIP_ID_SIZE: Final = 64
"""Bytes of GET_ID's answer for one socket."""

_CHIP_FILE: Final = "chip.secret"
_ENDORSEMENT_FILE: Final = "endorsement.cert"
_KEYS_FILE: Final = "platform.keys"


class PlatformIdentity:
    """The identity in a directory; the chip is made on first use.

    Args:
        path: the directory, private to the user.
        manufacturer: the manufacturer's directory; only a new chip needs it.

    Attributes:
        cek: the endorsement key's certificate, signed by the ASK.
        ca_chain: ASK||ARK.
        chip_id: GET_ID's answer.

    Raises:
        UserError: the directory is unreadable, open to others or tampered with.
    """

    def __init__(self, path: Path, manufacturer: Path) -> None:
        self._directory = PrivateDirectory(path, "platform identity")
        if not self._directory.has(_ENDORSEMENT_FILE):
            self._fabricate(manufacturer)
        secret = self._directory.read(_CHIP_FILE, CHIP_SECRET_SIZE)
        endorsement = self._directory.read(_ENDORSEMENT_FILE, certificate.SIZE + CA_CHAIN_SIZE)
        self._cek_key = _endorsement_key(secret)
        self._verified: tuple[bytes, PlatformKeys] | None = None  # what the file held, and the keys that made
        self.chip_id = _chip_id(secret)
        self.ca_chain = endorsement[certificate.SIZE :]
        try:
            self.cek = Certificate.decode(endorsement[: certificate.SIZE])
            self._ask, self._ark = decode_ca_chain(self.ca_chain)
            genuine = self.cek.key() == self._cek_key.public_key()
        except StreamError as error:
            raise self._tampered() from error
        if len(secret) != CHIP_SECRET_SIZE or not genuine:
            raise self._tampered()

    def keys(self) -> PlatformKeys | None:
        """The keys in non-volatile memory as they are now, verified; None before the first INIT.

        Raises:
            UserError: they are damaged, or not this chip's.
        """
        if not self._directory.has(_KEYS_FILE):
            return None
        stored = self._directory.read(_KEYS_FILE, platformkeys.SIZE)
        if self._verified is not None and self._verified[0] == stored:
            return self._verified[1]
        try:
            loaded = PlatformKeys.decode(stored)
            chain = PlatformChain(loaded.pdh, loaded.pek, loaded.oca, self.cek, self._ask, self._ark)
            chain.verify({self.root})
        except (StreamError, SealError) as error:
            raise self._tampered() from error
        self._verified = stored, loaded
        return loaded

    @property
    def root(self) -> bytes:
        """Fingerprint of the ARK: the one root this chip accepts in other platforms' chains."""
        return self._ark.fingerprint()

    def provision(self, api: tuple[int, int]) -> PlatformKeys:
        """The keys in non-volatile memory, made first if there are none (what INIT does)."""
        found = self.keys()
        if found is None:
            with self._directory.locked(Access.CHANGE):
                # Another process of this host may have been first.
                found = self.keys()
                if found is None:
                    found = self.regenerate(api)
        return found

    @contextmanager
    def changing(self, held: Lock | None = None) -> Iterator[None]:
        """Keep all other processes of the host from the keys, while `regenerate`, `store` or `erase` change them.

        Args:
            held: the caller's own lock of `hold`, which does not stand in its way.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, another process has guests.
        """
        lock = self._directory.try_change(held)
        if lock is None:
            detail = "another process of this host has guests; the keys can change when they are gone"
            raise failure(Status.INVALID_PLATFORM_STATE, detail)
        try:
            yield
        finally:
            if lock is held:
                lock.convert(Access.USE)
            else:
                lock.release()

    def regenerate(self, api: tuple[int, int]) -> PlatformKeys:
        """Fresh keys of a self-owned platform, in place of those there were."""
        fresh = PlatformKeys.generate(self._cek_key, api)
        self.store(fresh)
        return fresh

    def store(self, keys: PlatformKeys) -> None:
        """Put other keys in the place of those there are."""
        self._directory.write(_KEYS_FILE, keys.encode())

    def erase(self) -> None:
        """Forget the keys; the next INIT makes new ones."""
        self._directory.remove(_KEYS_FILE)

    def hold(self) -> Lock:
        """Keep the keys as they are until the lock is released; guests need that."""
        return self._directory.hold(Access.USE)

    def _fabricate(self, manufacturer: Path) -> None:
        """Make the chip; the endorsement is written last, since its presence says that the chip is whole."""
        with self._directory.locked(Access.CHANGE):
            if self._directory.has(_ENDORSEMENT_FILE):
                return
            maker = Manufacturer(manufacturer)
            secret = os.urandom(CHIP_SECRET_SIZE)
            key = _endorsement_key(secret).public_key()
            cek = maker.endorse(Certificate.of(Usage.CEK, Algorithm.ECDSA_SHA256, key, CEK_API))
            self._directory.write(_CHIP_FILE, secret)
            self._directory.write(_ENDORSEMENT_FILE, cek.encode() + maker.ca_chain)

    def _tampered(self) -> UserError:
        return UserError(
            f"the platform identity in {self._directory.path} is damaged or was tampered with; restore it from a "
            "copy, or move it away to get a new platform, which owners must approve again"
        )


def _endorsement_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    seed = hashlib.sha256(secret).digest()
    return ec.derive_private_key(kdf.endorsement_scalar(seed), ec.SECP384R1())


def _chip_id(secret: bytes) -> bytes:
    """x||y of a point on secp256k1, big-endian: which bytes silicon's are made of is not published."""
    point = ec.derive_private_key(kdf.identity_scalar(hashlib.sha256(secret).digest()), ec.SECP256K1())
    numbers = point.public_key().public_numbers()
    return b"".join(number.to_bytes(CHIP_ID_SIZE // 2, "big") for number in (numbers.x, numbers.y))
