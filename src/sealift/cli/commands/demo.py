"""``sealift demo``: the main job, from end to end, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sealift.cli.guest_options import DEFAULT_POLICY
from sealift.cli.options import SizeType, examples

if TYPE_CHECKING:
    from sealift.cli.demo.report import Report
    from sealift.cli.demo.screen import Screen
    from sealift.cli.way import Way


@click.command(
    "demo",
    short_help="Launch, attest, move and search: the main job, shown.",
    epilog=examples(
        "sealift demo", "sealift demo --payload README.md --transfer mailbox --json | tail -1 | jq .secrecy"
    ),
)
@click.option("--memory", type=SizeType(), default="256M", show_default=True, help="Guest RAM.")
@click.option(
    "--payload",
    type=click.Path(path_type=Path),
    help="File that the guest carries and hashes; a short text by default.",
)
@click.option(
    "--method",
    type=click.Choice(["mh", "psp"]),
    default="mh",
    show_default=True,
    help="Who encrypts the guest for its way: its own migration handler, or the hosts' secure processors.",
)
@click.option(
    "--transfer",
    type=click.Choice(["ring", "mailbox"]),
    show_default="ring",
    help="With --method mh: how pages leave the migration handler; the mailbox is the RFC's, one page at a time.",
)
@click.option(
    "--policy",
    show_default=f"{DEFAULT_POLICY}; with --method psp nodbg,sev",
    help="What the platforms must enforce: names joined by commas, or a number; es hides the guest's registers too.",
)
@click.option("--linux", is_flag=True, help="With an unmodified Linux as guest; this needs a usable /dev/kvm.")
@click.option("--series", help="Of Linux: 6.1 or 6.12; by default the first that can be had.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on the last line.")
def command(
    memory: int, payload: Path | None, series: str | None, *, linux: bool, as_json: bool, **how: str | None
) -> int:
    """Show the main job with real processes: two hosts, an owner, and a guest with a secret.

    The guest is launched, proved to its owner and moved while it runs; then everything that a VMM or the network
    could see is searched for its secret. The exit status is 0 only when every check held. Nothing is left behind
    but the manufacturer's keys, which your own hosts will use too.
    """
    import msgspec

    from sealift.cli.demo.screen import Screen
    from sealift.cli.way import Way
    from sealift.errors import SealiftError, sentence
    from sealift.wire.handover import Method, Transfer

    if linux and payload is not None:
        raise click.UsageError("--payload is for the built-in guest; Linux has a program of its own")
    if how["policy"] is not None and linux:
        raise click.UsageError("--policy is for the built-in guest")
    if series is not None and not linux:
        raise click.UsageError("--series is for --linux")
    if how["transfer"] is not None and how["method"] != "mh":
        raise click.UsageError("--transfer is for --method mh; secure processors move packets")
    way = Way(Method(how["method"]), Transfer(how["transfer"] or "ring"))
    screen = Screen(sys.stderr if as_json else sys.stdout)
    try:
        report = (
            _demonstrate_linux(screen, memory, way, series)
            if linux
            else _demonstrate(screen, memory, payload, way, how["policy"] or way.policy)
        )
    except SealiftError as error:
        if as_json:
            click.echo(msgspec.json.encode({"ok": False, "error": sentence(error)}).decode())
        raise
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    return 0 if report.ok else 1


def _demonstrate(screen: Screen, memory: int, payload: Path | None, way: Way, policy: str) -> Report:
    from sealift.cli.demo.ledger import LedgerPart
    from sealift.cli.demo.stage import Stage
    from sealift.cli.demo.story import Story
    from sealift.cli.scratch import scratch
    from sealift.sev.policy import parse_policy

    with scratch("demo") as place:
        stage = Stage(place)
        part = LedgerPart(stage, memory, payload, way, parse_policy(policy))
        return Story(stage, part, screen).tell()


def _demonstrate_linux(screen: Screen, memory: int, way: Way, series: str | None) -> Report:
    from sealift.cli.demo.linux import LinuxPart
    from sealift.cli.demo.stage import Stage
    from sealift.cli.demo.story import Story
    from sealift.cli.linux.image import linux_image
    from sealift.cli.scratch import scratch

    with scratch("demo") as place:
        stage = Stage(place)
        image = linux_image(place.path, series)
        part = LinuxPart(stage, memory, image, way)
        return Story(stage, part, screen).tell()
