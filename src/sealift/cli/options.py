"""Options and values that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from sealift.cli.engines import DEFAULT_ENGINE, ENGINES
from sealift.cli.places import Host, default_host
from sealift.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_SIZE: Final = re.compile(r"(\d+)\s*(?:([KMGT])(?:i?B)?|B)?\Z", re.IGNORECASE)
_UNITS: Final = "KMGT"


def parse_size(text: str) -> int:
    """Bytes from ``256M``, ``1GiB``, ``4096``: powers of 1024, as everywhere with memory.

    Raises:
        UserError: it is no size.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise UserError(f"{text!r} is no size; write it like 256M or 1G")
    number, unit = match.groups()
    return int(number) << (10 * (_UNITS.index(unit.upper()) + 1) if unit else 0)


def examples(*lines: str) -> str:
    """The end of a command's help: how it is used."""
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{shown}"  # \\b has click keep the lines as they are


class SizeType(click.ParamType[int]):
    """A size on the command line."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        try:
            return value if isinstance(value, int) else parse_size(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class HostType(click.ParamType[Host]):
    """A host's directory."""

    name = "directory"

    def convert(self, value: str | Host, param: click.Parameter | None, ctx: click.Context | None) -> Host:  # noqa: ARG002  # click's interface
        """The host."""
        return value if isinstance(value, Host) else Host(Path(value).absolute())


def file_option(name: str, text: str) -> Callable[[F], F]:
    """An option that names a file."""
    return click.option(name, type=click.Path(path_type=Path), help=text)


def engine_option(function: F) -> F:
    """``--engine``: what runs the vCPUs."""
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default=DEFAULT_ENGINE,
        show_default=True,
        help="What runs the vCPUs: auto takes KVM if it passes its self-test here (see `sealift check kvm`).",
    )(function)


def host_option(function: F) -> F:
    """``--host``: the same for every command."""
    return click.option(
        "--host",
        type=HostType(),
        default=default_host,
        show_default="the user's default host",
        help="Directory of the host: its platform identity and its running guests.",
    )(function)
