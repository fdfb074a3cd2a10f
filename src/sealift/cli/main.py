"""The ``sealift`` command: finds the subcommand, and turns what goes wrong into one sentence and an exit status.

Exit status: 0 done, 1 it could not be done (the reason is on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

import click
from click.exceptions import NoArgsIsHelpError

from sealift.cli.options import examples
from sealift.errors import InternalError, SealiftError, sentence

_COMMANDS: Final = {
    "demo": "Launch, attest, move and search: the main job, shown.",
    "run": "Launch a guest, or wait for one to arrive, and run it here.",
    "ps": "List the guests of a host.",
    "console": "Attach to a guest's console.",
    "monitor": "Type commands at a guest's human monitor.",
    "stop": "End a guest.",
    "migrate": "Move a running guest to another host.",
    "token": "Settle a handover that broke off.",
    "plan": "Predict what a migration would cost.",
    "history": "List migrations from a host: prediction beside outcome.",
    "snapshot": "Save a running guest to a file.",
    "dump": "Write a guest's memory and registers to a core file.",
    "qmp": "Send a guest's VMM a QMP command.",
    "owner": "What a guest's owner does without a VMM.",
    "platform": "A host's secure processor: its state, certificates and owner.",
    "cpu": "CPU models, ABI levels, and which CPU a guest can move with.",
    "firmware": "Firmware images: their descriptors, and what they support.",
    "check": "Look whether a guest can be moved, or KVM be used.",
    "tamper": "Be the hostile network between two hosts.",
    "bench": "Measure this machine: sealed memory in motion, idle guests.",
}
"""Subcommands in the order of their use: NAME is `sealift.cli.commands.NAME.command`, imported when it is needed."""

_FAILED: Final = 1
_INTERRUPTED: Final = 130


class _Commands(click.Group):
    """Subcommands that are imported when they are called; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's interface
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"sealift.cli.commands.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise InternalError(f"sealift.cli.commands.{cmd_name} has no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's interface
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001  # click's interface
    if wanted and not ctx.resilient_parsing:
        import importlib.metadata  # takes a tenth of a command's start

        click.echo(f"sealift {importlib.metadata.version('sealift')}")
        ctx.exit()


@click.group(
    cls=_Commands,
    epilog=examples("sealift run --name demo --kernel ledger"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
def sealift() -> None:
    """Launch, attest and live-migrate confidential guests, without SEV hardware."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(_run())


def _run() -> int:
    try:
        status = sealift.main(prog_name="sealift", standalone_mode=False)
    except click.ClickException as error:
        _explain(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return _INTERRUPTED
    except InternalError:
        raise  # a bug of ours: its traceback is what a report needs
    except SealiftError as error:
        _complain(sentence(error))
        return _FAILED
    except BrokenPipeError:
        # Whoever read our output has enough. Standard output must not complain once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return status if isinstance(status, int) else 0


def _explain(error: click.ClickException) -> None:
    match error:
        case NoArgsIsHelpError():
            error.show()
        case click.UsageError(ctx=click.Context() as context):
            _complain(f"{error.format_message().rstrip('.')} (see `{context.command_path} --help`)")
        case _:
            _complain(error.format_message().rstrip("."))


def _complain(reason: str) -> None:
    click.echo(f"sealift: {reason}", err=True)
