"""``sealift owner session``: makes a launch session for a platform."""

from __future__ import annotations

from pathlib import Path

import click

from sealift.cli.guest_options import DEFAULT_POLICY
from sealift.cli.options import examples
from sealift.cli.owner_options import Trust, force_option, trust_options

FORMATS = ("sevctl", "sev-tool")


@click.command(
    "session",
    short_help="Make a launch session for a platform.",
    epilog=examples(
        "sealift owner session chain.cert --trust ask_ark.cert --name vm",
        "sealift owner session pdh.cert cert_chain.cert --ca ask_ark.cert --policy nodbg,nosend,es",
        "sealift owner session pdh.cert --unverified --format sev-tool --directory launch",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@trust_options
@click.option(
    "--policy",
    default=DEFAULT_POLICY,
    show_default=True,
    help="The policy the session is for: names joined by commas, or a number. The launch must be given the same. "
    "Without nosend ask for sev or domain: else the host can send the guest to a key of its own, and read it.",
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="Whose files to write."
)
@click.option("--name", default="vm", show_default=True, help="What sevctl's files begin with.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Where to write the files.",
)
@force_option
def command(
    files: tuple[Path, ...],
    *,
    whom: Trust,
    policy: str,
    form: str,
    name: str,
    directory: Path,
    force: bool,
) -> None:
    """Make a session that only the platform with these certificates can open, and only for this policy.

    FILES hold the platform's certificates in any layout, raw or base64. Two of the files made here go to the host;
    the keys (TEK and TIK, mode 0600) stay with the owner, who needs them to validate the measurement and to seal
    secrets.
    """
    from sealift.errors import UserError
    from sealift.owner.files import write
    from sealift.owner.sessionfiles import SessionFormat, session_files
    from sealift.sev import session
    from sealift.sev.policy import parse_policy

    wanted = parse_policy(policy)
    if wanted.reserved:
        raise UserError(f"policy {int(wanted):#x} has reserved bits ({wanted.reserved:#x}), which firmware refuses")
    if not name or "/" in name:
        raise UserError(f"{name!r} is no name for files")
    certificates = whom.load(files)
    whom.require(whom.judge(certificates))
    if certificates.pdh is None:
        raise UserError("there is no PDH among the certificates, and a session is made for one")
    made = session_files(session.offer(certificates.pdh, wanted), directory, name, SessionFormat(form))
    write(made, replace=force)
    for warning in wanted.warnings():
        click.echo(f"sealift: {warning}", err=True)
    click.echo(f"a session for policy {int(wanted):#x} ({wanted.describe()})")
    width = max(len(str(file.path)) for file in made)
    for file in made:
        click.echo(f"  {file.path!s:<{width}}  {'keep it secret' if file.secret else 'for the host'}")
