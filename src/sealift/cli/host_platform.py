"""The platform of a host, asked without a guest: a platform process is started for it, and ends with the question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from sealift.cli.overview import guests_of
from sealift.cli.places import Host, default_manufacturer
from sealift.errors import FirmwareError, UserError
from sealift.owner.authority import OwnerAuthority
from sealift.privatefiles import PrivateDirectory
from sealift.sev.certfile import CertificateSet
from sealift.sev.chain import PlatformChain
from sealift.sev.status import Status
from sealift.vmm.launch import evidence_of
from sealift.vmm.platform import Platform
from sealift.wire import platform as wire

_ENGINE: Final = "unicorn"
"""No guest will run: the engine that needs no self-test."""


class PlatformOverview(msgspec.Struct, frozen=True, rename="kebab"):
    """A host's platform. `state` is PLATFORM_STATUS's: working while any platform process of the host has a guest.

    `guests` are those of the host, also one that is only awaited, which the platform knows nothing of yet. `owner` is
    self or external, `es` whether SEV-ES guests can be launched, `oca` the fingerprint of the owner's certificate, `id`
    GET_ID's answer.
    """

    api_major: int
    api_minor: int
    build_id: int
    state: str
    owner: str
    es: bool
    guests: tuple[str, ...]
    oca: str
    id: str


class HostPlatform:
    """One host's platform; made by `open_platform`."""

    def __init__(self, host: Host, platform: Platform) -> None:
        self._host = host
        self._platform = platform

    def chip_id(self) -> str:
        """GET_ID, in upper-case hexadecimal as sevctl and the manufacturer's key server have it."""
        return self._platform.request(wire.GetId(), wire.PlatformId).chip_id.hex().upper()

    def overview(self) -> PlatformOverview:
        """What there is to know of it."""
        status = self._platform.request(wire.GetPlatformStatus(), wire.PlatformStatus)
        return PlatformOverview(
            api_major=status.api_major,
            api_minor=status.api_minor,
            build_id=status.build_id,
            state="working" if self._in_use() else "initialized",
            owner="external" if status.owned else "self",
            es=status.es,
            guests=self._guests(),
            oca=self._chain().oca.fingerprint().hex(),
            id=self.chip_id(),
        )

    def certificates(self, *, endorsed: bool = True) -> CertificateSet:
        """All its certificates up to the root; the CEK as the manufacturer signed it, or as firmware exports it."""
        chain = self._chain()
        cek = chain.cek if endorsed else chain.cek.unsigned()
        return CertificateSet.of((chain.pdh, chain.pek, chain.oca, cek, chain.ask, chain.ark))

    def csr(self) -> bytes:
        """PEK_CSR: what an owner signs, 2084 bytes."""
        return self._platform.request(wire.PekCsr(), wire.PekRequest).pek

    def provision(self, authority: OwnerAuthority) -> None:
        """Give the platform to an owner whose key is here; raises as `provision_signed`."""
        self.provision_signed(authority.signed(self.csr()), authority.certificate.encode())

    def provision_signed(self, pek: bytes, oca: bytes) -> None:
        """PEK_CERT_IMPORT: give the platform to the owner who signed its CSR, and whose certificate is `oca`.

        Raises:
            UserError: it has an external owner, or guests.
            FirmwareError: the certificates are not those of this platform and that owner.
        """
        self._change(wire.PekCertImport(pek, oca))

    def rotate(self) -> None:
        """PDH_GEN; raises UserError while guests run."""
        self._change(wire.PdhGen())

    def reset(self) -> None:
        """PLATFORM_RESET; raises UserError while guests run."""
        self._change(wire.PlatformReset())

    def require_unowned(self) -> None:
        """Demand that no external owner is in.

        Raises:
            UserError: one is.
        """
        if self._platform.request(wire.GetPlatformStatus(), wire.PlatformStatus).owned:
            raise self._owned()

    def _change(self, request: wire.Message) -> None:
        try:
            self._platform.do(request)
        except FirmwareError as error:
            match error.status:
                case Status.ALREADY_OWNED:
                    raise self._owned() from error
                case Status.INVALID_PLATFORM_STATE:
                    raise self._busy() from error
                case _:
                    raise

    def _owned(self) -> UserError:
        return UserError(
            f"the platform of {self._host.path} has an external owner; `sealift platform reset{self._host.option}` "
            "ends that"
        )

    def _busy(self) -> UserError:
        guests = self._guests()
        who = f"by its guests: {', '.join(guests)}" if guests else "right now"
        return UserError(f"the keys of {self._host.path} cannot change, since they are in use {who}")

    def _in_use(self) -> bool:
        """Whether a platform process of the host has a guest: then it keeps the keys from being changed."""
        return PrivateDirectory(self._host.identity, "platform identity").in_use()

    def _guests(self) -> tuple[str, ...]:
        return tuple(guest.name for guest in guests_of(self._host))

    def _chain(self) -> PlatformChain:
        evidence = evidence_of(self._platform)
        return PlatformChain.decode(evidence.pdh, evidence.cert_chain, evidence.ca_chain)


@contextmanager
def open_platform(host: Host) -> Iterator[HostPlatform]:
    """Start a platform process of the host, which is made on first use.

    Raises:
        UserError: its identity is damaged, or open to others.
    """
    platform = Platform.start(host.identity, default_manufacturer(), engine=_ENGINE)
    try:
        yield HostPlatform(host, platform)
    finally:
        platform.close()
