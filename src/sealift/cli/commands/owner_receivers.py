"""``sealift owner approve|revoke|list``: which hosts may receive which guests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealift.cli.options import F, examples
from sealift.cli.owner_options import binary, chip_or_root, directory_option, json_option, print_json

if TYPE_CHECKING:
    from sealift.owner.receivers import ReceiverRule

_ANY: Final = "any"
_INSTANCE_ID_SIZE: Final = 16

_OPTIONS: Final = (
    click.argument("who"),
    click.option("--root", is_flag=True, help="WHO is a root: the rule is about all hosts of its manufacturer."),
    click.option("--guest", metavar="ID", help="For this guest alone, by its instance id as `owner log` shows it."),
    directory_option,
)


def _rule_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(
    "approve",
    short_help="Let a host receive guests.",
    epilog=examples(
        "sealift owner approve target.cert",
        "sealift owner approve b4fb2045dfc05ec8... --guest 994846faed520326d67d37c6430645f6",
        "sealift owner approve --root manufacturer.cert",
        "sealift owner approve any",
    ),
)
@_rule_options
def approve(who: str, owner: Path, guest: str | None, *, root: bool) -> None:
    """Let WHO receive this owner's guests: one host, all hosts under a root, or any.

    WHO is `any`, the fingerprint of a host's CEK, or a file with the host's certificates; with --root the fingerprint
    of an ARK or a file with one. The host must prove to be genuine all the same.

    Of the rules that fit a host and a guest the nearest decides: the host's before its root's before any's, and of two
    alike the one for this guest. A new owner has approved any host for every guest: `revoke any` leaves only those that
    were approved by name.
    """
    _add(who, owner, guest, root=root, approved=True)


@click.command(
    "revoke",
    short_help="Let a host receive guests no more.",
    epilog=examples("sealift owner revoke any", "sealift owner revoke target.cert"),
)
@_rule_options
def revoke(who: str, owner: Path, guest: str | None, *, root: bool) -> None:
    """Let WHO receive guests no more; WHO and options are those of `approve`.

    It holds from the next question on, also for a receiver that has been launched and waits for its secret. A guest
    that has moved already stays where it is.
    """
    _add(who, owner, guest, root=root, approved=False)


@click.command("list", short_help="The rules about receivers.", epilog=examples("sealift owner list"))
@directory_option
@json_option
def show(owner: Path, *, as_json: bool) -> None:
    """Print which hosts may receive which guests: the first rule that fits decides."""
    from sealift.cli.table import print_table
    from sealift.owner.owner import Owner
    from sealift.owner.receivers import in_order

    rules = [_described(rule) for rule in in_order(Owner(owner.absolute()).settings.receivers)]
    if as_json:
        print_json(rules)
        return
    print_table(("RULE", "HOSTS", "FINGERPRINT", "GUEST"), [tuple(rule.values()) for rule in rules])


def _described(rule: ReceiverRule) -> dict[str, str]:
    return {
        "rule": "approved" if rule.approved else "revoked",
        "hosts": rule.scope.value,
        "fingerprint": rule.fingerprint.hex() or "-",
        "guest": "every" if rule.guest is None else rule.guest.hex(),
    }


def _add(who: str, owner: Path, guest: str | None, *, root: bool, approved: bool) -> None:
    from sealift.owner.owner import Owner
    from sealift.owner.receivers import ReceiverRule, Scope

    if who == _ANY and root:
        raise click.UsageError("`any` names no root; leave --root out")
    scope = Scope.ANY if who == _ANY else Scope.ROOT if root else Scope.HOST
    fingerprint = b"" if scope is Scope.ANY else chip_or_root(who, root=root)
    instance = None if guest is None else binary("instance id", guest, {_INSTANCE_ID_SIZE})
    rule = ReceiverRule(scope, approved, fingerprint, instance)
    Owner(owner.absolute()).set_receivers(rule)
    whom = "every guest" if guest is None else f"guest {guest}"
    click.echo(f"{'approved' if approved else 'revoked'}: {rule.name}, {whom}")
