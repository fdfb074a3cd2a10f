"""An owner elsewhere, as tests play it with the library's functions: no process, no directory, only files."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from sealift.cli.places import Places
from sealift.cli.recipes import make_recipe
from sealift.launch.secrets import GUEST_GUID
from sealift.sev import measurement, secret, session
from sealift.sev.certificate import Certificate
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.secret import SecretEntry
from sealift.sev.session import OwnerSession
from sealift.vmm.launch import evidence_of
from sealift.vmm.platform import Platform

SECRET = b"a secret that an owner elsewhere planted"


def pdh_of(places: Places) -> Certificate:
    """The PDH of a host, which is made if need be; it stays the same when guests come and go."""
    platform = Platform.start(places.host.identity, places.manufacturer, engine="unicorn")
    try:
        return Certificate.decode(evidence_of(platform).pdh)
    finally:
        platform.close()


@dataclass(frozen=True)
class AbsentOwner:
    """One launch's owner: what it made for it, and where it left the public part."""

    policy: Policy
    offered: OwnerSession
    dh_cert_file: Path
    session_file: Path

    @classmethod
    def make(cls, places: Places, directory: Path, policy: Policy = Policy.NODBG) -> AbsentOwner:
        """Make a session for a host, and its files as sevctl writes them."""
        offered = session.offer(pdh_of(places), policy)
        owner = cls(policy, offered, directory / "vm_godh.b64", directory / "vm_session.b64")
        owner.dh_cert_file.write_bytes(base64.b64encode(offered.dh_cert))
        owner.session_file.write_bytes(base64.b64encode(offered.session))
        return owner

    def expects(self, measure: bytes, version: FirmwareVersion, memory: int, kernel: str, append: str = "") -> bool:
        """Whether a launch measurement is that of such a guest with two vCPUs."""
        digest = make_recipe(memory, 2, kernel, command_line=append).under(self.policy).launch_digest()
        return measurement.matches(measure, self.offered.transport.tik, version, self.policy, digest)

    def packet(self, measure: bytes, *more: SecretEntry) -> tuple[bytes, bytes]:
        """Header and payload of the launch secret, for the launch with this measurement."""
        table = secret.build_table((SecretEntry(GUEST_GUID, SECRET), *more))
        return secret.make_packet(self.offered.transport, measure, table)
