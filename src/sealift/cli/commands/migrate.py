"""``sealift migrate``: move a running guest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sealift.cli.options import examples, host_option
from sealift.cli.parameter_options import capabilities_of, parameter_options, parameters_of, target_uri
from sealift.cli.places import Host

if TYPE_CHECKING:
    from sealift.cli.progress import ProgressDisplay
    from sealift.cli.watch import Choice, Order
    from sealift.vmm.migration.stats import MigrationInfo

_OF_THE_WAY: Final = {"max-bandwidth", "downtime-limit", "tls-creds", "tls-hostname", "x-sealift-resume-window"}
"""Parameters that may be others when a migration goes on: they are about the way, not about what travels."""


@click.command(
    "migrate",
    short_help="Move a running guest to another host.",
    epilog=examples(
        "sealift migrate demo tcp:192.0.2.7:4444",
        "sealift migrate demo unix:/run/sealift/b.sock --downtime-limit 100 --json",
        "sealift migrate demo tcp:192.0.2.7:4444 --method psp",
        "sealift migrate demo tcp:192.0.2.7:4444 --receipt moved.json",
        "sealift migrate demo tcp:192.0.2.7:4444 --resume-window 300",
        "sealift migrate demo tcp:192.0.2.7:4444 --resume",
        "sealift migrate demo",
        "sealift migrate demo tcp:b.example:4444 --multifd 4 --tls-creds ~/pki --auto-converge",
    ),
)
@click.argument("name")
@click.argument("uri", required=False)
@parameter_options
@click.option(
    "--packet-pages",
    type=click.IntRange(1, 256),
    metavar="N",
    show_default="as set over QMP, at first 256",
    help="With --method psp: pages in a packet; KVM's own SEV commands take no more than 1.",
)
@click.option(
    "--downtime-limit",
    type=click.IntRange(min=0),
    metavar="MS",
    show_default="what `sealift run` was given",
    help="How long the guest may stand still.",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="First ask the target and everybody else what is in the way (see `sealift check`), or just begin.",
)
@click.option(
    "--pause-before-switchover",
    is_flag=True,
    help="Stop the guest and wait for `sealift migrate NAME --continue` before its rest moves.",
)
@click.option(
    "--resume-window",
    type=click.IntRange(0, 3600),
    metavar="SECONDS",
    show_default="as set over QMP, at first 0",
    help="Should the connections be lost, the target keeps what has come for so long, for --resume (method mh).",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a migration whose connections were lost: only what did not arrive, or is newer, is sent.",
)
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Instead of moving it: let a migration go on that waits before the switchover.",
)
@click.option(
    "--receipt",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what both migration handlers state of the migration, for `sealift owner receipt` (not with psp).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object (QEMU's MigrationInfo).")
@host_option
def command(
    host: Host,
    name: str,
    uri: str | None,
    *,
    go_on: bool,
    resume: bool,
    as_json: bool,
    **options: object,
) -> int:
    """Move the guest NAME to URI, where `sealift run --incoming` waits for it.

    Without URI, attach to a migration of NAME that has been begun, by whomever.

    Ctrl-C asks on a terminal whether to give the migration up, to detach from it, or to go on watching. Elsewhere it
    gives the migration up and leaves the guest running here, until the guest is being handed over. The exit status is 0
    only when the guest runs on the other host, or may yet, because you detached.

    If the target is lost while the guest is handed over, nobody can know whether it runs there, and it stays stopped
    here until `sealift token import` brings the token that the target keeps of such a guest, or its owner's.
    """
    from sealift.cli.receipt_file import write_receipt
    from sealift.cli.watch import Order, describe, goes_on, moved

    check = bool(options.pop("check"))
    receipt = _receipt_place(options)
    capabilities = capabilities_of(options)
    parameters = parameters_of(options)
    if go_on:
        _continue(host, name, alone=not (uri or parameters or capabilities or resume))
        return 0
    if resume:
        _check_resume(uri, parameters, capabilities)
    if uri is None and (parameters or capabilities or receipt is not None):
        raise click.UsageError(
            "a migration that has begun keeps its parameters, and its receipt is for who began it",
            click.get_current_context(),
        )
    uri = None if uri is None else target_uri(uri)
    order = None if uri is None else Order(uri, parameters, tuple(capabilities), check, resume)
    info = _migrate(host, name, order)
    if as_json:
        click.echo(_json(info))
    if not moved(info) and not goes_on(info):
        _say(describe(name, uri, info))
        return 1
    if not as_json:
        click.echo(describe(name, uri, info))
    if receipt is not None and order is not None:
        write_receipt(receipt, name, order.uri, info)
    return 0


def _check_resume(uri: str | None, parameters: dict[str, object], capabilities: list[str]) -> None:
    if uri is None or parameters.keys() - _OF_THE_WAY or capabilities:
        raise click.UsageError(
            "a migration goes on to a URI, with the method, the channels and the capabilities that it began with",
            click.get_current_context(),
        )


def _receipt_place(options: dict[str, object]) -> Path | None:
    """Where the receipt is to be written, if it is wanted; taken out of the options, which are the migration's.

    Raises:
        UserError: it cannot be written there.
    """
    from sealift.cli import receipt_file

    path = options.pop("receipt")
    if not isinstance(path, Path):
        return None
    if options["method"] == "psp":
        raise click.UsageError("method psp makes no receipt: its processors share no key with the guest's owner")
    receipt_file.check_place(path)
    return path


def _continue(host: Host, name: str, *, alone: bool) -> None:
    from sealift.cli.qmp_client import QmpClient

    if not alone:
        raise click.UsageError("give either the URI of a target or --continue", click.get_current_context())

    with QmpClient(host.run, name) as qmp:
        qmp.execute("migrate-continue", state="pre-switchover")


def _migrate(host: Host, name: str, order: Order | None) -> MigrationInfo:
    """Begin one, or watch the one that is underway."""
    from sealift.cli.progress import progress_display
    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.watch import Display, attach, migrate

    with QmpClient(host.run, name, 60.0) as qmp, progress_display(name) as progress:
        display = Display(progress.show, _say, lambda: _ask(progress))
        return attach(qmp, display) if order is None else migrate(qmp, order, display)


def _ask(progress: ProgressDisplay) -> Choice:
    """What Ctrl-C means: without a terminal to ask on, that the migration is to be given up."""
    from sealift.cli.watch import Choice

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return Choice.CANCEL
    with progress.aside():
        click.echo(
            "sealift: press c to cancel the migration, d to detach from it, another key to go on watching", err=True
        )
        try:
            key = click.getchar()
        except KeyboardInterrupt:  # pressed again: as without being asked
            return Choice.CANCEL
    return {"c": Choice.CANCEL, "d": Choice.DETACH}.get(key, Choice.GO_ON)


def _json(info: MigrationInfo) -> str:
    import msgspec

    return msgspec.json.encode(info).decode()


def _say(sentence: str) -> None:
    click.echo(f"sealift: {sentence}", err=True)
