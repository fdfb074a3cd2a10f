"""PEK_CERT_IMPORT: how a platform gets an external owner.

The owner signs the certificate of PEK_CSR with its own key (OCA). Firmware takes owner and signature over, and puts
its chip's endorsement beside them, so that the PEK is vouched for by both::

    PEK_CSR ──► owner signs ──► PEK: body, OCA's signature + stored PEK: CEK's signature ──► PEK of the owned platform
"""

from __future__ import annotations

from dataclasses import replace

from sealift.errors import StreamError
from sealift.sev import certificate
from sealift.sev.certificate import Certificate, Signature, Usage
from sealift.sev.keys import PublicKey
from sealift.sev.status import Status, failure
from sealift.silicon.processor.platformkeys import PlatformKeys


def import_owner(keys: PlatformKeys, pek: bytes, oca: bytes, api: tuple[int, int]) -> PlatformKeys:
    """`keys` under the owner whose certificate is `oca`, with a new PDH.

    Raises:
        FirmwareError: ALREADY_OWNED, INVALID_LENGTH, INVALID_CERTIFICATE, BAD_SIGNATURE, INVALID_CERTIFICATE, in the
            order of PEK_CERT_IMPORT.
    """
    if keys.externally_owned:
        raise failure(Status.ALREADY_OWNED, "the platform has an external owner; PEK_GEN or PLATFORM_RESET ends that")
    for name, blob in (("PEK", pek), ("OCA", oca)):
        if len(blob) != certificate.SIZE:
            detail = f"the {name} certificate has {certificate.SIZE} bytes, not {len(blob)}"
            raise failure(Status.INVALID_LENGTH, detail)
    owner, owner_key = _decode(Usage.OCA, oca)
    signed, _ = _decode(Usage.PEK, pek)
    for cert in (owner, signed):
        if any(slot.half_empty for slot in cert.signatures):
            detail = f"the {cert.usage.name} has a signature slot with a usage or an algorithm, but not both"
            raise failure(Status.BAD_SIGNATURE, detail)
        if not cert.verifies(Usage.OCA, owner_key):
            raise failure(Status.BAD_SIGNATURE, f"the {cert.usage.name} carries no valid signature of the OCA")
    if signed.body() != keys.pek.body():
        raise failure(Status.INVALID_CERTIFICATE, "the PEK certificate is not the one of this platform's PEK_CSR")
    endorsed = replace(signed, signatures=_beside(signed.signatures, keys))
    return replace(keys, oca=owner, pek=endorsed, externally_owned=True).with_new_pdh(api)


def _decode(usage: Usage, data: bytes) -> tuple[Certificate, PublicKey]:
    try:
        cert = Certificate.decode(data)
        if cert.usage is not usage:
            detail = f"a {cert.usage.name} certificate stands where the {usage.name} belongs"
            raise failure(Status.INVALID_CERTIFICATE, detail)
        return cert, cert.key()
    except StreamError as error:
        raise failure(Status.INVALID_CERTIFICATE, f"the {usage.name} certificate is malformed") from error


def _beside(slots: tuple[Signature, Signature], keys: PlatformKeys) -> tuple[Signature, Signature]:
    """The owner's slots with the chip's endorsement, which the stored PEK carries, in the free one."""
    (endorsement,) = (slot for slot in keys.pek.signatures if slot.usage == Usage.CEK)
    match slots:
        case (owner, free) if free.empty:
            return owner, endorsement
        case (free, owner) if free.empty:
            return endorsement, owner
        case _:
            raise failure(Status.INVALID_CERTIFICATE, "the PEK has no free signature slot for the CEK's signature")
