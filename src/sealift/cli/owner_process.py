"""``python -m sealift.cli.owner_process FD ASSIGNMENT``: the local owner, for one VMM; ends with its connection."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import assert_never

import msgspec

from sealift.cli.owner_link import (
    Assignment,
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
)
from sealift.cli.recipes import make_recipe, read_file
from sealift.errors import LostError, SealiftError
from sealift.guest.handler.digest import handler_digest
from sealift.launch.secrets import GUEST_GUID, NO_FLAGS, MigrationFlags
from sealift.owner.definition import GuestDefinition
from sealift.owner.owner import Owner
from sealift.sev.policy import Policy
from sealift.sev.secret import SecretEntry
from sealift.silicon.processor.manufacturer import Manufacturer
from sealift.wire.channel import Channel
from sealift.wire.failure import to_failed


def main() -> None:
    """Serve until the VMM disconnects."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, assignment = sys.argv[1:]
    channel: Channel[OwnerRequest, msgspec.Struct] = Channel(socket.socket(fileno=int(fd)), OwnerRequest)
    server = _Server(msgspec.json.decode(assignment, type=Assignment))
    try:
        while True:
            request, _ = channel.receive()
            channel.send(server.answer(request))
    except LostError:
        return


class _Server:
    """Answers requests; what went wrong while getting ready is the answer to all of them."""

    def __init__(self, assignment: Assignment) -> None:
        self._trouble: SealiftError | None = None
        try:
            self._owner = Owner(Path(assignment.owner), _definition(assignment))
            self._notes = establish_trust(self._owner, Path(assignment.manufacturer))
        except SealiftError as error:
            self._trouble = error

    def answer(self, request: OwnerRequest) -> OwnerReply:
        """The reply to one request."""
        try:
            if self._trouble is not None:
                raise self._trouble
            return self._carry_out(request)
        except SealiftError as error:
            return to_failed(error)

    def _carry_out(self, request: OwnerRequest) -> OwnerReply:
        match request:
            case Prepare():
                return Prepared(self._notes)
            case Begin(evidence):
                return Session(self._owner.begin(evidence))
            case BeginReceiver(evidence, source_measure):
                return Session(self._owner.begin_receiver(evidence, source_measure))
            case BeginRestore(evidence, header):
                return Session(self._owner.begin_restore(evidence, header))
            case JudgeReceiver(evidence, source_measure):
                return Opinion(self._owner.judge_receiver(evidence, source_measure))
            case Release(launch_id, measure):
                return Secret(self._owner.release(launch_id, measure))
            case _:
                assert_never(request)


def establish_trust(owner: Owner, manufacturer: Path) -> tuple[str, ...]:
    """Let a new local owner trust the local manufacturer, and accept the handler that is installed here.

    An owner that trusts any root already decided for itself, and is left alone.

    Returns:
        What was changed, as sentences for the user.
    """
    notes = []
    trusted = owner.settings
    if not trusted.roots:
        root = Manufacturer(manufacturer).ark
        owner.trust(root.encode())
        notes.append(f"the owner trusts the root {root.fingerprint().hex()[:16]}… of {manufacturer} from now on")
    digest = handler_digest()
    if digest not in trusted.handlers:
        owner.accept_handler(digest)
        notes.append(f"the owner accepts the installed migration handler {digest.hex()[:16]}… from now on")
    return tuple(notes)


def _definition(assignment: Assignment) -> GuestDefinition | None:
    if assignment.kernel is None:
        return None
    recipe = make_recipe(
        assignment.memory,
        assignment.vcpus,
        assignment.kernel,
        assignment.payload,
        assignment.command_line,
        assignment.initrd,
    )
    flags = MigrationFlags.SKIP_ZERO_PAGES if assignment.zero_pages else NO_FLAGS
    return GuestDefinition(recipe, Policy(assignment.policy), _entries(assignment.secret), flags)


def _entries(secret: str | None) -> tuple[SecretEntry, ...]:
    if secret is None:
        return ()
    return (SecretEntry(GUEST_GUID, read_file("secret", Path(secret))),)


if __name__ == "__main__":
    main()
