"""The owner's client: what a VMM asks an owner, the local one in a process of its own or one that is served elsewhere.

An owner holds what a VMM must never see: the guest's secret and its migration keys. So even the owner on the same
machine runs in a process of its own, which ends with its connection::

    VMM process (wiring) ── argv: what the user wants to run ─────────► owner process
                         ── Prepare ──────────────────────────────────►  trusts the local root on first use
                         ◄─────────────────────────── Prepared(notes) ─
                         ── Begin…, JudgeReceiver, Release ────────────►  sealift.owner.Owner
                         ◄──────── Session, Opinion, Secret or Failed ─

An owner served elsewhere (``sealift owner serve``) is asked over a connection for every request, and knows by itself
which guest it wants to run.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from typing import Final, TypeVar

import msgspec

from sealift.cli.assignment import Assignment
from sealift.errors import LostError, PeerError, RefusedError, UserError
from sealift.launch.image import GuestRecipe
from sealift.sev.policy import Policy
from sealift.vmm.launch import Launch, begin, complete
from sealift.vmm.memory import SharedMemory
from sealift.vmm.migration.transport import NetworkAddress, TcpAddress, UnixAddress, connect, parse_uri
from sealift.vmm.platform import Platform
from sealift.wire.channel import Channel, socket_pair
from sealift.wire.failure import from_failed
from sealift.wire.obstacle import Obstacle
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant
from sealift.wire.owner_link import (
    Begin,
    BeginReceiver,
    BeginRestore,
    JudgeReceiver,
    Opinion,
    OwnerReply,
    OwnerRequest,
    Prepare,
    Prepared,
    Release,
    Secret,
    Session,
    receive_frame,
    send_frame,
)
from sealift.wire.platform import Failed, Message

_EXIT_PATIENCE_S: Final = 5.0
"""An owner's process ends at once when its connection closes; longer than this means it hangs."""

_REPLY_LIMIT_S: Final = 30.0
"""An owner answers in some milliseconds; one that many ask at once, or over a bad line, in seconds."""


def owner_address(uri: str) -> NetworkAddress:
    """Where an owner is served.

    Raises:
        UserError: owners are not served at such a place.
    """
    address = parse_uri(uri)
    if not isinstance(address, TcpAddress | UnixAddress):
        raise UserError(f"an owner is served at tcp:HOST:PORT or unix:PATH, not at {uri}")
    return address


R = TypeVar("R", bound=Message)


class OwnerClient(ABC):
    """An owner that is asked by messages; implements `sealift.wire.owner.OwnerService`."""

    def prepare(self) -> tuple[str, ...]:
        """Wait until the owner is ready; its notes to the user.

        Raises:
            SealiftError: what is wrong with its directory or with the guest it is to expect; or it is not there.
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
        """Launch this owner's guest, up to and with its secret; raises as `sealift.vmm.launch.launch`.

        Raises:
            UserError: the owner's guest has encrypted registers and this machine was made for one without, or so.
        """
        begun = begin(platform, self)
        policy = Policy(begun.grant.policy)
        if (Policy.ES in policy) is not recipe.es:
            raise UserError(
                f"the owner's guest has the policy {policy.describe()}, for which this machine was not made; "
                f"say --policy {policy.describe()}"
            )
        return complete(platform, memory, recipe, self, begun)

    @abstractmethod
    def close(self) -> None:
        """The owner is not needed any more; again does nothing."""

    @abstractmethod
    def _exchange(self, message: OwnerRequest) -> OwnerReply:
        """The owner's reply."""

    def _ask(self, message: OwnerRequest, expect: type[R]) -> R:
        reply = self._exchange(message)
        if isinstance(reply, Failed):
            raise from_failed(reply)
        if not isinstance(reply, expect):
            raise RefusedError(f"the owner answered {type(message).__name__} with {type(reply).__name__}")
        return reply


class LocalOwner(OwnerClient):
    """The local owner, in a process that ends with this."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self._channel: Channel[OwnerReply, Message] = Channel(sock, OwnerReply)
        self._lock = threading.Lock()

    @classmethod
    def start(cls, assignment: Assignment) -> LocalOwner:
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

    def close(self) -> None:
        """End the process; again does nothing."""
        self._channel.close()
        try:
            self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _exchange(self, message: OwnerRequest) -> OwnerReply:
        try:
            with self._lock:
                self._channel.send(message)
                reply, _ = self._channel.receive()
        except LostError as error:
            raise LostError("the owner's process is gone") from error
        return reply


class NoOwner(OwnerClient):
    """In the place of an owner where a guest is awaited that has none."""

    def prepare(self) -> tuple[str, ...]:
        """Nothing is to be set up."""
        return ()

    def close(self) -> None:
        """Nothing was started."""

    def _exchange(self, message: OwnerRequest) -> OwnerReply:  # noqa: ARG002  # whatever it is
        raise RefusedError("a plain guest is awaited, which has no owner")


class ServedOwner(OwnerClient):
    """An owner that listens at an address; there is one connection a request, so nothing is to be closed."""

    def __init__(self, address: NetworkAddress, limit_s: float = _REPLY_LIMIT_S) -> None:
        self._address = address
        self._limit_s = limit_s

    def close(self) -> None:
        """Nothing is held."""

    def _exchange(self, message: OwnerRequest) -> OwnerReply:
        """The owner's reply. Whatever is wrong with it is a refusal: who cannot be asked has not agreed."""
        try:
            sock = connect(self._address)
        except LostError:
            raise RefusedError(f"no owner answers at {self._address}, and nothing goes on without its word") from None
        with contextlib.closing(sock):
            try:
                send_frame(sock, message, self._limit_s)
                reply: OwnerReply = receive_frame(sock, OwnerReply, self._limit_s)
            except PeerError as error:
                raise RefusedError(f"the owner at {self._address} gave no answer") from error
        if isinstance(reply, Failed):
            raise RefusedError(reply.reason)
        return reply
