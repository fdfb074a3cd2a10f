"""Snapshots by secure processors: a host sends a guest to itself, some time later.

SEND_START is for the host's own PDH, so nobody but this very platform can open the packets, and only while it keeps
that key (PDH_GEN and PLATFORM_RESET end all of them). When everything was collected SEND_CANCEL lets the guest run on;
AMD's protocol has nothing against that. The owner is not asked, neither now nor when the guest is restored: a policy
without NOSEND leaves that to the host.

Packets are authenticated one by one, as in a migration (`psp`). What holds them together, and what is in clear beside
them, is the last line: the SHA-256 of everything under a MAC of the session's, which its secure processor makes while
it sends and checks while it receives. A session is the host's own if its sender's key is: from its public half alone
nobody comes to the secret that a key shares with itself. So whoever has the file, and no VMM on this host, can change
nothing. A VMM on this host needs no file for that: it could have had any packets made, and any MAC.
"""

from __future__ import annotations

from sealift.errors import RefusedError, StreamError
from sealift.sev.policy import Policy
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.psp import PspRounds, PspTarget
from sealift.wire import platform as wire
from sealift.wire import psp
from sealift.wire.token import NO_CLOSE, Token, TokenKind, split_token, whole_digest


class PspSnapshot(PspRounds):
    """The source's secure processor as the source of a snapshot (`method.SnapshotMethod`)."""

    def begin(self) -> bytes:
        """SEND_START for this host itself; what its RECEIVE_START will need."""
        own = self._platform.request(wire.PdhCertExport(), wire.PdhCertificates)
        return self._begin(psp.Answer(own.pdh, own.cert_chain, self._platform.info().ca_chain)).encode()

    def end(self, stream_digest: bytes) -> bytes:
        """SEND_CANCEL: the guest runs on."""
        token = _token(self.identity(), stream_digest)
        sealed = self._platform.request(wire.SealStream(token.close_digest), wire.StreamSealed)
        self.cancel()
        return token.body() + sealed.mac


class PspRestore(PspTarget):
    """The same secure processor, later (`method.RestoreMethod`)."""

    def begin(self, offer: bytes) -> None:
        """RECEIVE_START, for a session that this host has with itself.

        Raises:
            RefusedError: it is another's.
        """
        own = self._platform.request(wire.PdhCertExport(), wire.PdhCertificates)
        if psp.Confirm.decode(offer).pdh != own.pdh:
            raise RefusedError(
                "this host's secure processor did not seal the snapshot, or has been given another key since (PDH)"
            )
        self.agreed(offer)

    def finish(self, end: bytes, stream_digest: bytes) -> None:
        """Everything is here that an honest source wrote, as it wrote it."""
        self.prepared()
        token, mac = split_token(end)
        if token != _token(self.identity(), stream_digest):
            raise StreamError("the snapshot was damaged: its last line is about other bytes than those before it")
        self._platform.do(wire.CheckStream(token.close_digest, mac))

    def start(self) -> None:
        """RECEIVE_FINISH."""
        self.started()


class PspRestoreEntrance:
    """Lets in what this host's secure processor sent to itself (`method.RestoreEntrance`)."""

    def __init__(self, offer: bytes) -> None:
        """For the snapshot with this offer.

        Raises:
            StreamError: the offer makes no sense.
        """
        self._policy = Policy(psp.Confirm.decode(offer).policy)

    @property
    def es(self) -> bool:
        """As the policy says that RECEIVE_START will be given."""
        return Policy.ES in self._policy

    def enter(self, machine: Machine) -> tuple[Launched, PspRestore]:
        """Nothing is launched: RECEIVE_START makes the guest."""
        return Launched(int(self._policy), b""), PspRestore(machine, es=self.es)


def _token(nonce: bytes, stream_digest: bytes) -> Token:
    """What the last line says, in the shape of a handler's SNAPSHOT; the MAC behind it is of the digest alone."""
    return Token(TokenKind.SNAPSHOT, nonce, whole_digest(NO_CLOSE, stream_digest))
