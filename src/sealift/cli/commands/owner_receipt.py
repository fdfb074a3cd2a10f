"""``sealift owner receipt``: did my guest move as this receipt says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealift.cli.options import examples
from sealift.cli.owner_options import binary, directory_option, json_option, print_json
from sealift.errors import SealError

if TYPE_CHECKING:
    from sealift.owner.ledger import Launch
    from sealift.owner.receipts import Verdict
    from sealift.wire.receipt import Claims, Receipt, Statement

_INSTANCE_ID_SIZE = 16


@click.command(
    "receipt",
    short_help="Check the receipt of a migration.",
    epilog=examples(
        "sealift owner receipt moved.json",
        "sealift owner receipt moved.json --guest 994846faed520326d67d37c6430645f6",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--guest", metavar="ID", help="The guest it should be about, by its instance id as `owner log` shows it.")
@directory_option
@json_option
def command(file: Path, owner: Path, guest: str | None, *, as_json: bool) -> None:
    """Check FILE, which `sealift migrate --receipt` wrote: what moved, from which launch to which.

    Both launches' migration handlers must state the same, each under a key that only it and this owner have. Times and
    names are the VMM's claim, which nothing proves. The exit status is 0 only if nothing is wrong.
    """
    from sealift.owner.files import parsed
    from sealift.owner.owner import Owner
    from sealift.owner.receipts import read_receipt, verify
    from sealift.wire.receipt import FILE_LIMIT

    receipt = parsed("receipt", file, FILE_LIMIT, read_receipt)
    wanted = None if guest is None else binary("instance id", guest, {_INSTANCE_ID_SIZE})
    verdict = verify(receipt, Owner(owner.absolute()).ledger, wanted)
    if as_json:
        print_json(_as_json(receipt, verdict))
    elif not verdict.faults:
        _print(receipt, verdict)
    if verdict.faults:
        raise SealError("the receipt proves nothing: " + "; ".join(verdict.faults))


def _as_json(receipt: Receipt, verdict: Verdict) -> dict[str, Any]:
    return {
        "valid": not verdict.faults,
        "faults": verdict.faults,
        "source": _launch(verdict.source),
        "target": _launch(verdict.target),
        "stated": receipt.source or receipt.target,
        "claimed-by-the-vmm": receipt.claimed_by_the_vmm,
    }


def _launch(launch: Launch | None) -> dict[str, str] | None:
    return None if launch is None else {"launch": launch.launch_id, "host": launch.host.hex()}


def _print(receipt: Receipt, verdict: Verdict) -> None:
    stated: Statement | None = receipt.source
    if stated is None or verdict.source is None or verdict.target is None:
        return
    lines = {
        "guest": stated.guest,
        "migration": stated.migration,
        "from": f"launch {verdict.source.launch_id} on host {verdict.source.host.hex()}",
        "to": f"launch {verdict.target.launch_id} on host {verdict.target.host.hex()}",
        "moved": f"{stated.pages} private pages in {stated.records} records of {stated.length} bytes",
        "tags": stated.tags,
    }
    for name, value in lines.items():
        click.echo(f"{name:<9}  {value}")
    click.echo("OK: the handlers of both launches state this")
    if receipt.claimed_by_the_vmm is not None:
        click.echo(f"the VMM claims, and nothing proves: {_claimed(receipt.claimed_by_the_vmm)}")


def _claimed(claims: Claims) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in f"{claims.name} to {claims.uri}")
    ended = "".join(char if char.isprintable() else "?" for char in claims.ended)
    return f"{printable}, ended {ended}, {claims.total_time} ms in all, {claims.downtime} ms of downtime"
