"""``sealift qmp``: one command for a guest's VMM."""

from __future__ import annotations

from typing import Any, Final

import click

from sealift.cli.options import examples, host_option
from sealift.cli.places import Host

_INPUT: Final = "-"


@click.command(
    "qmp",
    short_help="Send a guest's VMM a QMP command.",
    epilog=examples(
        "sealift qmp demo query-sev-launch-measure | jq -r .data",
        "sealift qmp demo sev-inject-launch-secret packet-header=$(cat h.b64) secret=$(cat s.b64)",
        "sealift owner secret --format qmp … | sealift qmp demo -",
        "sealift qmp demo cont",
    ),
)
@click.argument("name")
@click.argument("qmp_command", metavar="COMMAND")
@click.argument("arguments", metavar="[ARGUMENT=VALUE]...", nargs=-1)
@host_option
def command(name: str, qmp_command: str, arguments: tuple[str, ...], host: Host) -> None:
    """Have the VMM of the guest NAME carry out COMMAND, as QEMU's schema has it, and print the answer as JSON.

    A VALUE that is JSON is taken as that, and any other one as text. With - for COMMAND the whole command is read
    from standard input, as a JSON object. `query-commands` lists what there is.
    """
    import msgspec

    from sealift.cli.qmp_client import QmpClient

    if qmp_command != _INPUT:
        execute, given = qmp_command, dict(map(_argument, arguments))
    elif arguments:
        raise click.UsageError("a command from standard input takes its arguments along")
    else:
        execute, given = _from_input()
    with QmpClient(host.run, name) as qmp:
        answer = qmp.execute(execute, **given)
    if answer != {}:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())


def _from_input() -> tuple[str, dict[str, Any]]:
    from sealift.errors import UserError
    from sealift.vmm.qmp.message import QmpError, decode_request

    with click.open_file("-", "rb") as stream:
        text = stream.read()
    try:
        request = decode_request(text)
    except QmpError as error:
        raise UserError("standard input holds no QMP command") from error
    return request.execute, request.arguments


def _argument(text: str) -> tuple[str, object]:
    import msgspec

    from sealift.wire.packed import UNDECODABLE

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{text!r} is no argument; write NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except UNDECODABLE:
        return name, value
