"""Where guests may go: an owner's rules about receivers, of which the nearest one decides.

A rule approves or revokes a host (by its chip's CEK), all hosts under a root, or any host; for one guest or for every
guest. Of those that fit, the nearest decides::

    this host, this guest ─► this host ─► its root, this guest ─► its root ─► any, this guest ─► any ─► refused

A new owner has the one rule that any host may receive every guest. Whatever the rules say, a receiver must be a genuine
platform under a pinned root and launch what the owner expects: a rule is beside that, never instead of it.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from sealift.errors import RefusedError, StreamError
from sealift.launch.secrets import INSTANCE_ID_SIZE

FINGERPRINT_SIZE: Final = 32


class Scope(enum.Enum):
    """Which hosts a rule is about; the nearest first."""

    HOST = "host"
    """One, by the fingerprint of its CEK."""
    ROOT = "root"
    """All whose certificates lead to one root, by the fingerprint of its ARK."""
    ANY = "any"
    """All."""


class ReceiverRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule.

    Attributes:
        scope: which hosts.
        approved: whether they may receive; False revokes it.
        fingerprint: of the CEK or the ARK, 32 bytes; empty for any host.
        guest: instance id of the one guest it is about; None for every guest.
    """

    scope: Scope
    approved: bool
    fingerprint: bytes = b""
    guest: bytes | None = None

    def replaces(self, other: ReceiverRule) -> bool:
        """Whether both are about the same."""
        return (self.scope, self.fingerprint, self.guest) == (other.scope, other.fingerprint, other.guest)

    @property
    def name(self) -> str:
        """The hosts it is about."""
        return "any host" if self.scope is Scope.ANY else f"{self.scope.value} {self.fingerprint.hex()}"


ANYWHERE: Final = ReceiverRule(Scope.ANY, approved=True)
"""The rule of a new owner."""

_SCOPES: Final = tuple(Scope)


def in_order(rules: tuple[ReceiverRule, ...]) -> list[ReceiverRule]:
    """The rules, the nearest first."""
    return sorted(rules, key=lambda rule: (_SCOPES.index(rule.scope), rule.guest is None, rule.fingerprint))


def with_rule(rules: tuple[ReceiverRule, ...], new: ReceiverRule) -> tuple[ReceiverRule, ...]:
    """The rules with one more, in the place of an older one about the same.

    Raises:
        StreamError: its fingerprint or its guest has not the size of one.
    """
    size = 0 if new.scope is Scope.ANY else FINGERPRINT_SIZE
    if len(new.fingerprint) != size:
        raise StreamError(f"the fingerprint of a {new.scope.value} has {size} bytes, not {len(new.fingerprint)}")
    if new.guest is not None and len(new.guest) != INSTANCE_ID_SIZE:
        raise StreamError(f"a guest's instance id has {INSTANCE_ID_SIZE} bytes, not {len(new.guest)}")
    return tuple(in_order((*(rule for rule in rules if not new.replaces(rule)), new)))


def require_approved(rules: tuple[ReceiverRule, ...], host: bytes, root: bytes, guest: bytes) -> None:
    """Demand that the rules let a host, by the fingerprints of its chip and of its root, receive a guest.

    Raises:
        RefusedError: they do not; the message names the rule that decides.
    """
    keys = {Scope.HOST: host, Scope.ROOT: root, Scope.ANY: b""}
    for rule in in_order(rules):
        if rule.fingerprint == keys[rule.scope] and rule.guest in {None, guest}:
            if rule.approved:
                return
            whom = "" if rule.guest is None else " for this guest"
            who = "any host that is not approved by name" if rule.scope is Scope.ANY else rule.name
            raise RefusedError(f"host {host.hex()} may not receive the guest: the owner has revoked {who}{whom}")
    raise RefusedError(f"host {host.hex()} may not receive the guest: no rule of the owner approves it")
