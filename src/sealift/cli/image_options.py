"""The options that say what is launched, and so what is measured: the same for every command that needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sealift.cli import guest_options as defaults
from sealift.cli.options import F, SizeType, file_option

_OPTIONS: Final = (
    click.option("--memory", type=SizeType(), default="256M", show_default=True, help="Guest RAM."),
    click.option("--vcpus", type=click.IntRange(min=1), default=defaults.DEFAULT_VCPUS, show_default=True),
    click.option(
        "--kernel",
        default=defaults.DEFAULT_KERNEL,
        show_default=True,
        help="Built-in program (ledger, idle), ELF file or Linux bzImage.",
    ),
    file_option("--initrd", "Linux's first file system."),
    file_option("--payload", "File that a kernel other than Linux finds in guest memory."),
    click.option("--append", default="", help="The kernel's command line."),
    click.option(
        "--policy",
        default=defaults.DEFAULT_POLICY,
        show_default=True,
        help="What the platform must enforce: names joined by commas, or a number. Without nosend ask for sev "
        "or domain: else the host can send the guest to a key of its own, and read it.",
    ),
)


def _load_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let a configuration file set what options do not."""
    if path is not None:
        ctx.default_map = defaults.read_config(path)


config_argument = click.argument(
    "config", required=False, is_eager=True, expose_value=False, callback=_load_config, type=click.Path(path_type=Path)
)
"""A guest's TOML file."""


def image_options(function: F) -> F:
    """``--memory``, ``--vcpus``, ``--kernel``, ``--initrd``, ``--payload``, ``--append`` and ``--policy``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
