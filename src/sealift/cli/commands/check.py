"""``sealift check``: whether things are as they should be: KVM, or the way of a guest to another host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sealift.cli.options import examples, host_option
from sealift.cli.parameter_options import capabilities_of, parameter_options, parameters_of, target_uri
from sealift.cli.places import Host

if TYPE_CHECKING:
    from sealift.vmm.qmp.commands.foresight import PreflightInfo


@click.command(
    "check",
    short_help="Look whether a guest can be moved, or KVM be used.",
    epilog=examples(
        "sealift check kvm",
        "sealift check demo tcp:192.0.2.7:4444",
        "sealift check demo tcp:b.example:4444 --tls-creds ~/pki --multifd 4",
        "sealift check demo tcp:192.0.2.7:4444 --json | jq -r '.obstacles[].code'",
    ),
)
@click.argument("name", metavar="kvm | NAME")
@click.argument("uri", required=False)
@parameter_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@host_option
def command(host: Host, name: str, uri: str | None, *, as_json: bool, **options: object) -> int:
    """Look whether something is as it should be; exit status 0 if it is, and 1 with the reasons if not.

    With a URI: whether the guest NAME can be moved there, where `sealift run --incoming` waits. Both hosts, both
    platforms and the guest's owner are asked, and everything that is in the way is listed, with codes that stay the
    same. The target waits on as before.

    With kvm alone: run KVM's self-test in a process of its own: long mode, SSE, VMMCALL, both windows on memory and
    their logs. Without a usable KVM, guests run on the portable engine, which runs Sealift's own small programs and no
    Linux. (A guest that is named kvm is checked like any other: with a URI.)
    """
    from sealift.cli.watch import once

    capabilities = capabilities_of(options)
    parameters = parameters_of(options)
    if uri is not None:
        return _migration(host, name, target_uri(uri), once(parameters, capabilities), as_json=as_json)
    if name != "kvm":
        raise click.UsageError(
            f"where is {name} to go? give the URI of a target, or kvm alone", click.get_current_context()
        )
    from sealift.silicon.engines.kvm.usable import check

    check(anew=True)
    click.echo("KVM can run guests here")
    return 0


def _migration(host: Host, name: str, uri: str, way: dict[str, object], *, as_json: bool) -> int:
    import msgspec

    from sealift.cli.qmp_client import QmpClient
    from sealift.vmm.qmp.commands.foresight import PreflightInfo

    with QmpClient(host.run, name, 60.0) as qmp:
        answer = qmp.execute("x-sealift-preflight", uri=uri, **way)
    found = msgspec.convert(answer, PreflightInfo)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        _show(name, uri, found)
    return 0 if found.possible else 1


def _show(name: str, uri: str, found: PreflightInfo) -> None:
    from sealift.cli.table import print_table

    if found.obstacles:
        rows = [(obstacle.severity, obstacle.code, obstacle.reason) for obstacle in found.obstacles]
        print_table(("SEVERITY", "CODE", "REASON"), rows)
    if found.path is not None:
        trip, rate = found.path.round_trip * 1e3, found.path.bandwidth / 1e6
        click.echo(f"the way there takes {rate:.0f} MB/s, {trip:.2f} ms there and back")
    click.echo(f"guest {name} can{'' if found.possible else 'not'} be moved to {uri}")
