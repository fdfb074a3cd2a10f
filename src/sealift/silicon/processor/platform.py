"""Platform commands: states of the platform, and the keys and certificates of its identity.

Keys belong to the host, which several platform processes share as its sockets. They change only while no other
process has guests: otherwise PEK_GEN, PEK_CERT_IMPORT, PDH_GEN and PLATFORM_RESET end with INVALID_PLATFORM_STATE, as
they would on one processor that is WORKING.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sealift.sev import certificate, chain
from sealift.sev.certificate import Certificate
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.status import Status, failure
from sealift.silicon.processor.asids import AsidTable
from sealift.silicon.processor.core import Core
from sealift.silicon.processor.identity import CHIP_ID_SIZE
from sealift.silicon.processor.ownership import import_owner
from sealift.silicon.processor.room import require_room
from sealift.silicon.processor.states import Command, PlatformState, require_platform

INIT_ES: Final = 1
"""INIT flag bit 0: prepare the platform for SEV-ES guests."""

_STATUS: Final = struct.Struct("<BBBBHBBI")
_OWNED: Final = 1
_CONFIG_ES: Final = 1


@dataclass(frozen=True, slots=True)
class PlatformStatus:
    """Answer of PLATFORM_STATUS; `owned` is true for an external owner."""

    version: FirmwareVersion
    state: PlatformState
    owned: bool
    es: bool
    guests: int

    def encode(self) -> bytes:
        """Firmware's 12 bytes, which Linux hands on as struct sev_user_data_status."""
        return _STATUS.pack(
            self.version.api_major,
            self.version.api_minor,
            self.state,
            _OWNED if self.owned else 0,
            _CONFIG_ES if self.es else 0,
            0,
            self.version.build_id,
            self.guests,
        )


@dataclass(frozen=True, slots=True)
class PlatformCertificates:
    """PDH, and PEK||OCA||CEK."""

    pdh: bytes
    cert_chain: bytes


class PlatformCommands(Core):
    """Commands that address no guest."""

    def close(self) -> None:
        """Forget all guests and caches, as power-off would, and let the host's keys change again."""
        self._forget_guests()
        self._asids = AsidTable()
        self._state = PlatformState.UNINIT

    def init(self, flags: int = 0) -> None:
        """INIT: make what keys are missing, and be ready for guests.

        Args:
            flags: `INIT_ES` or 0.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE; INVALID_PARAM for unknown flags.
            UserError: the host's identity is damaged.
        """
        require_platform(Command.INIT, self._state)
        if flags & ~INIT_ES:
            raise failure(Status.INVALID_PARAM, f"INIT does not know flags {flags:#x}")
        self._identity.provision(self.version.api)
        self._es = bool(flags & INIT_ES)
        self._advance(Command.INIT)

    def shutdown(self) -> None:
        """SHUTDOWN: in any state; guests that exist are lost, and ASIDs stay as dirty as they are."""
        require_platform(Command.SHUTDOWN, self._state)
        self._forget_guests()
        self._advance(Command.SHUTDOWN)

    def platform_reset(self) -> None:
        """PLATFORM_RESET: erase OCA, PEK and PDH, and with them an external owner; the chip stays who it is.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.PLATFORM_RESET, self._state)
        with self._identity.changing(self._keys_held):
            self._identity.erase()

    def platform_status(self) -> PlatformStatus:
        """PLATFORM_STATUS: in any state; before INIT only version and state mean something."""
        if self._state is PlatformState.UNINIT:
            return PlatformStatus(self.version, self._state, owned=False, es=False, guests=0)
        keys = self._identity.keys()
        owned = keys is not None and keys.externally_owned
        return PlatformStatus(self.version, self._state, owned, self._es, len(self._guests))

    def pek_gen(self) -> None:
        """PEK_GEN: fresh OCA, PEK and PDH; the platform is its own owner again.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.PEK_GEN, self._state)
        with self._identity.changing(self._keys_held):
            self._identity.regenerate(self.version.api)

    def pek_csr(self, room: int = certificate.SIZE) -> bytes:
        """PEK_CSR: the PEK's certificate without signatures, for an owner to sign.

        Args:
            room: bytes of the caller's buffer.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE; INVALID_LENGTH (`ShortBufferError`).
        """
        require_platform(Command.PEK_CSR, self._state)
        require_room(Command.PEK_CSR, (room, certificate.SIZE))
        return self._keys().pek.unsigned().encode()

    def pek_cert_import(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: let an external owner in, who signed this platform's PEK; a new PDH follows.

        Args:
            pek: the certificate of PEK_CSR, signed by the owner.
            oca: the owner's certificate, signed by itself.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, ALREADY_OWNED, INVALID_LENGTH, INVALID_CERTIFICATE (one does not
                parse), BAD_SIGNATURE (OCA, then PEK), INVALID_CERTIFICATE (not this PEK), in this order.
        """
        require_platform(Command.PEK_CERT_IMPORT, self._state)
        with self._identity.changing(self._keys_held):
            self._identity.store(import_owner(self._keys(), pek, oca, self.version.api))

    def pdh_gen(self) -> None:
        """PDH_GEN: a fresh PDH; sessions made for the old one open no more, guests that exist are not touched.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.PDH_GEN, self._state)
        with self._identity.changing(self._keys_held):
            self._identity.store(self._keys().with_new_pdh(self.version.api))

    def pdh_cert_export(
        self, pdh_room: int = certificate.SIZE, chain_room: int = chain.CERT_CHAIN_SIZE
    ) -> PlatformCertificates:
        """PDH_CERT_EXPORT: the certificates firmware has, so the CEK's carries no signature.

        Args:
            pdh_room: bytes of the caller's buffer for the PDH.
            chain_room: bytes of the caller's buffer for PEK||OCA||CEK.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE; INVALID_LENGTH (`ShortBufferError`).
        """
        require_platform(Command.PDH_CERT_EXPORT, self._state)
        sizes = (pdh_room, certificate.SIZE), (chain_room, chain.CERT_CHAIN_SIZE)
        require_room(Command.PDH_CERT_EXPORT, *sizes)
        return self._certificates(self._identity.cek.unsigned())

    def endorsed_certificates(self) -> PlatformCertificates:
        """PDH_CERT_EXPORT with the CEK as the manufacturer's key server serves it: what owners verify.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE.
        """
        require_platform(Command.PDH_CERT_EXPORT, self._state)
        return self._certificates(self._identity.cek)

    def get_id(self, room: int = CHIP_ID_SIZE) -> bytes:
        """GET_ID: the 64 bytes by which the manufacturer's key server knows this socket; in any state.

        Args:
            room: bytes of the caller's buffer.

        Raises:
            FirmwareError: INVALID_LENGTH (`ShortBufferError`).
        """
        require_platform(Command.GET_ID, self._state)
        require_room(Command.GET_ID, (room, CHIP_ID_SIZE))
        return self._identity.chip_id

    def wbinvd(self) -> None:
        """Not a command but the host's duty before DF_FLUSH: caches of all its cores written back and invalidated."""
        self._asids.wbinvd()

    def df_flush(self) -> None:
        """DF_FLUSH: make ASIDs that were given up fit for use again.

        Raises:
            FirmwareError: INVALID_PLATFORM_STATE, WBINVD_REQUIRED.
        """
        require_platform(Command.DF_FLUSH, self._state)
        self._asids.flush()

    def _certificates(self, cek: Certificate) -> PlatformCertificates:
        keys = self._keys()
        return PlatformCertificates(keys.pdh.encode(), keys.pek.encode() + keys.oca.encode() + cek.encode())
