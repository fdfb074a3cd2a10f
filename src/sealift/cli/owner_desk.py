"""The owner's desk: answers the requests of VMMs for one owner, whichever way they come."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from sealift.cli.assignment import Assignment
from sealift.cli.recipes import make_recipe, read_file
from sealift.errors import SealiftError
from sealift.guest.handler.digest import handler_digest
from sealift.launch.secrets import GUEST_GUID, NO_FLAGS, MigrationFlags
from sealift.owner.definition import GuestDefinition
from sealift.owner.owner import Owner
from sealift.sev.policy import Policy
from sealift.sev.secret import SecretEntry
from sealift.silicon.processor.manufacturer import Manufacturer
from sealift.wire.failure import to_failed
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
)


class OwnerDesk:
    """Answers requests; `notes` are what Prepare's sender is told."""

    def __init__(self, owner: Owner, notes: tuple[str, ...] = ()) -> None:
        self._owner = owner
        self._notes = notes

    def answer(self, request: OwnerRequest) -> OwnerReply:
        """The reply to one request; never raises for what is wrong with it."""
        try:
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
    if not owner.settings.roots:
        root = Manufacturer(manufacturer).ark
        owner.trust(root.encode())
        notes.append(f"the owner trusts the root {root.fingerprint().hex()[:16]}… of {manufacturer} from now on")
    return (*notes, *accept_installed_handler(owner))


def policy_warnings(guest: GuestDefinition | None) -> tuple[str, ...]:
    """What the policy of the guest to be launched, if there is one, lets its host do."""
    return () if guest is None else guest.policy.warnings()


def accept_installed_handler(owner: Owner) -> tuple[str, ...]:
    """Accept the handler that is installed here; what was changed, as sentences for the user."""
    digest = handler_digest()
    if digest in owner.settings.handlers:
        return ()
    owner.accept_handler(digest)
    return (f"the owner accepts the installed migration handler {digest.hex()[:16]}… from now on",)


def definition_of(assignment: Assignment) -> GuestDefinition | None:
    """The guest that an assignment is about, if there is one."""
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
