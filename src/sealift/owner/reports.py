"""An owner's judgement of an attestation report: whose it is, and whether it is of the expected guest."""

from __future__ import annotations

from dataclasses import dataclass

from sealift.errors import SealError, StreamError, UserError
from sealift.sev.certfile import CertificateSet
from sealift.sev.certificate import Usage
from sealift.sev.policy import Policy
from sealift.sev.report import AttestationReport, Encoding


@dataclass(frozen=True, slots=True)
class ExpectedReport:
    """What a report must hold; None is anything.

    Attributes:
        mnonce: the nonce the owner chose, without which an old report would do.
        launch_digest: of the guest.
        policy: the guest's.
    """

    mnonce: bytes | None = None
    launch_digest: bytes | None = None
    policy: Policy | None = None

    def check(self, report: AttestationReport) -> None:
        """Demand that a report holds it.

        Raises:
            SealError: it does not; all that differs is named.
        """
        fields = (
            ("nonce", _hex(self.mnonce), report.mnonce.hex()),
            ("launch digest", _hex(self.launch_digest), report.launch_digest.hex()),
            ("policy", None if self.policy is None else _words(self.policy), _words(report.policy)),
        )
        wrong = [
            f"its {name} is {found}, not {wanted}" for name, wanted, found in fields if wanted not in {None, found}
        ]
        if wrong:
            raise SealError(f"the report is not the expected one: {'; '.join(wrong)}")


def check_signature(report: AttestationReport, certificates: CertificateSet) -> None:
    """Demand that the PEK among the certificates signed a report.

    Raises:
        UserError: there is no PEK.
        SealError: it did not.
    """
    pek = certificates.certificates.get(Usage.PEK)
    if pek is None:
        raise UserError("there is no PEK among the certificates, and reports are signed by one")
    try:
        key = pek.key()
    except StreamError as error:
        raise SealError("the PEK's public key is invalid") from error
    if report.usage != Usage.PEK:
        raise SealError(f"the report says that a key of usage {report.usage:#x} signed it, not a PEK")
    if not report.written_as(Encoding.RAW).verifies(key):
        raise SealError("the report carries no valid signature of this PEK: another platform's, or altered")


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _words(policy: Policy) -> str:
    return f"{int(policy):#x} ({policy.describe()})"
