"""The local owner's process, and the VMM's end of the conversation with it.

An owner holds what a VMM must never see: the guest's secret and its migration keys. So even the owner on the same
machine runs in a process of its own, which ends with its connection::

    VMM process (wiring) ── argv: what the user wants to run ─────────► owner process
                         ── Prepare ──────────────────────────────────►  trusts the local root on first use
                         ◄─────────────────────────── Prepared(notes) ─
                         ── Begin, BeginReceiver, BeginRestore, JudgeReceiver, Release ►  sealift.owner.Owner
                         ◄─────────────────── Session, Opinion, Secret or Failed ─
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Final, TypeAlias, TypeVar

import msgspec

from sealift.errors import InternalError, LostError
from sealift.launch.image import GuestRecipe
from sealift.vmm.launch import Launch, launch
from sealift.vmm.memory import SharedMemory
from sealift.vmm.platform import Platform
from sealift.wire.channel import Channel, socket_pair
from sealift.wire.failure import from_failed
from sealift.wire.obstacle import Obstacle
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant
from sealift.wire.platform import Failed, Message

_EXIT_PATIENCE_S: Final = 5.0
"""An owner's process ends at once when its connection closes; longer than this means it hangs."""


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user tells the owner: whom to trust at first, and which guest to expect.

    `kernel` None means that it only serves receivers. Paths are absolute; sizes are bytes.
    """

    owner: str
    manufacturer: str
    kernel: str | None = None
    initrd: str | None = None
    payload: str | None = None
    command_line: str = ""
    memory: int = 0
    vcpus: int = 0
    policy: int = 0
    secret: str | None = None
    zero_pages: bool = False


class Prepare(Message, frozen=True):
    """Get ready. Reply: Prepared."""


class Prepared(Message, frozen=True):
    """Ready; `notes` are sentences for the user about what was set up."""

    notes: tuple[str, ...]


class Begin(Message, frozen=True):
    """`OwnerService.begin`. Reply: Session."""

    evidence: PlatformEvidence


class BeginReceiver(Message, frozen=True):
    """`OwnerService.begin_receiver`. Reply: Session."""

    evidence: PlatformEvidence
    source_measure: bytes


class BeginRestore(Message, frozen=True):
    """`OwnerService.begin_restore`. Reply: Session."""

    evidence: PlatformEvidence
    header: bytes


class Release(Message, frozen=True):
    """`OwnerService.release`. Reply: Secret."""

    launch_id: str
    measure: bytes


class JudgeReceiver(Message, frozen=True):
    """`OwnerService.judge_receiver`. Reply: Opinion."""

    evidence: PlatformEvidence
    source_measure: bytes


class Opinion(Message, frozen=True):
    """What the owner has against it."""

    obstacles: tuple[Obstacle, ...]


class Session(Message, frozen=True):
    """A session was granted."""

    grant: SessionGrant


class Secret(Message, frozen=True):
    """A secret was released."""

    grant: SecretGrant


OwnerRequest: TypeAlias = Prepare | Begin | BeginReceiver | BeginRestore | JudgeReceiver | Release
OwnerReply: TypeAlias = Prepared | Opinion | Session | Secret | Failed

R = TypeVar("R", bound=Message)


class OwnerClient:
    """The owner in its process; implements `sealift.wire.owner.OwnerService`."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self._channel: Channel[OwnerReply, Message] = Channel(sock, OwnerReply)
        self._lock = threading.Lock()

    @classmethod
    def start(cls, assignment: Assignment) -> OwnerClient:
        """Start an owner's process; `prepare` says whether it is well."""
        ours, theirs = socket_pair()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sealift.cli.owner_process",
                    str(theirs.fileno()),
                    msgspec.json.encode(assignment).decode(),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the VMM, whose end this process follows.
                start_new_session=True,
            )
        return cls(process, ours)

    def prepare(self) -> tuple[str, ...]:
        """Wait until the owner is ready; its notes to the user.

        Raises:
            SealiftError: what is wrong with its directory or with the guest it is to expect.
        """
        return self._ask(Prepare(), Prepared).notes

    def begin(self, evidence: PlatformEvidence) -> SessionGrant:
        """See `OwnerService.begin`."""
        return self._ask(Begin(evidence), Session).grant

    def begin_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> SessionGrant:
        """See `OwnerService.begin_receiver`."""
        return self._ask(BeginReceiver(evidence, source_measure), Session).grant

    def judge_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> tuple[Obstacle, ...]:
        """See `OwnerService.judge_receiver`."""
        return self._ask(JudgeReceiver(evidence, source_measure), Opinion).obstacles

    def begin_restore(self, evidence: PlatformEvidence, header: bytes) -> SessionGrant:
        """See `OwnerService.begin_restore`."""
        return self._ask(BeginRestore(evidence, header), Session).grant

    def release(self, launch_id: str, measure: bytes) -> SecretGrant:
        """See `OwnerService.release`."""
        return self._ask(Release(launch_id, measure), Secret).grant

    def launch(self, platform: Platform, memory: SharedMemory, recipe: GuestRecipe) -> Launch:
        """Launch this owner's guest, up to and with its secret; raises as `sealift.vmm.launch.launch`."""
        return launch(platform, memory, recipe, self)

    def close(self) -> None:
        """End the process; again does nothing."""
        self._channel.close()
        try:
            self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, message: Message, expect: type[R]) -> R:
        try:
            with self._lock:
                self._channel.send(message)
                reply, _ = self._channel.receive()
        except LostError as error:
            raise LostError("the owner's process is gone") from error
        if isinstance(reply, Failed):
            raise from_failed(reply)
        if not isinstance(reply, expect):
            raise InternalError(f"the owner answered {type(message).__name__} with {type(reply).__name__}")
        return reply
