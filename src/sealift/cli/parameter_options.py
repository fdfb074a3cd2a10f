"""Options that ``check``, ``plan`` and ``migrate`` share: by which way a guest is to go, in QEMU's names.

They are for one command: what is set over QMP for all migrations stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from sealift.cli.options import parse_size
from sealift.wire.record import MAX_CHANNELS

_PARAMETERS: Final = {
    "method": "x-sealift-method",
    "transfer": "x-sealift-transfer",
    "packet_pages": "x-sealift-packet-pages",
    "downtime_limit": "downtime-limit",
    "max_bandwidth": "max-bandwidth",
    "resume_window": "x-sealift-resume-window",
    "multifd": "multifd-channels",
    "tls_creds": "tls-creds",
    "tls_hostname": "tls-hostname",
}
"""QEMU's names of our options, of which a command may have some alone."""

_CAPABILITIES: Final = ("auto_converge", "pause_before_switchover")
"""Options that are QEMU's capabilities and nothing else."""

_OPTIONS: Final = (
    click.option(
        "--method",
        type=click.Choice(["mh", "psp", "plain"]),
        show_default="as set over QMP, at first mh, and plain for plain guests",
        help="Who encrypts the guest: its own migration handler, as its owner approves the target, or the hosts' "
        "secure processors, as its policy lets them (not with nosend); nobody, of a plain guest.",
    ),
    click.option(
        "--transfer",
        type=click.Choice(["ring", "mailbox"]),
        show_default="as set over QMP, at first ring",
        help="How pages leave the guest's migration handler; the mailbox is the RFC's, one page at a time.",
    ),
    click.option(
        "--max-bandwidth",
        metavar="SIZE",
        callback=lambda _, __, text: None if text is None else parse_size(text),
        help="Bytes a second while the guest runs (10M, 1G); once it is stopped there is no limit.",
    ),
    click.option(
        "--auto-converge",
        is_flag=True,
        help="Let the guest run less when it writes faster than that can be sent; see also --parameter.",
    ),
    click.option(
        "--multifd",
        type=click.IntRange(1, MAX_CHANNELS),
        metavar="N",
        help="Use N sealed channels, each on a connection of its own.",
    ),
    click.option(
        "--tls-creds",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Speak TLS. The directory holds ca-cert.pem, client-cert.pem and client-key.pem, or keys.psk, as QEMU's.",
    ),
    click.option(
        "--tls-hostname", metavar="NAME", help="What the target's certificate is for, if that is not the URI's host."
    ),
    click.option(
        "--parameter",
        "others",
        metavar="NAME=VALUE",
        multiple=True,
        help="Any other parameter of query-migrate-parameters for this migration: cpu-throttle-initial=40.",
    ),
)


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command; `parameters_of` takes what they give."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parameters_of(options: dict[str, object]) -> dict[str, object]:
    """Arguments of migrate-set-parameters; takes what belongs there out of a command's options."""
    others = options.pop("others")
    given = {option: options.pop(option) for option in _PARAMETERS if option in options}
    parameters = {_PARAMETERS[option]: _value(value) for option, value in given.items() if value is not None}
    return parameters | dict(_named(str(each)) for each in others) if isinstance(others, tuple) else parameters


def capabilities_of(options: dict[str, object]) -> list[str]:
    """Capabilities to switch on, in QEMU's names; takes those out of a command's options that are nothing else.

    To be asked before `parameters_of`, which takes --multifd: that is both.
    """
    on = [option.replace("_", "-") for option in _CAPABILITIES if options.pop(option, False)]
    return [*on, "multifd"] if options["multifd"] is not None else on


def target_uri(uri: str) -> str:
    """A migration URI as the VMM understands it, which does not know what the path of a file is relative to."""
    scheme, _, path = uri.partition(":")
    return f"file:{Path(path).absolute()}" if scheme == "file" else uri


def _value(value: object) -> object:
    """As JSON has it."""
    return str(value.absolute()) if isinstance(value, Path) else value


def _named(text: str) -> tuple[str, object]:
    """A parameter and its value, which is JSON or else a string."""
    import msgspec

    name, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"{text!r} is no parameter; write NAME=VALUE", click.get_current_context())
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value
