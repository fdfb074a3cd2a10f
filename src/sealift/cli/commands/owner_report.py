"""``sealift owner report``: reads and verifies an attestation report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealift.cli.options import examples, file_option
from sealift.cli.owner_options import Trust, force_option, gathered, json_option, trust_options

if TYPE_CHECKING:
    from sealift.owner.reports import ExpectedReport
    from sealift.sev.report import AttestationReport

ENCODINGS = ("raw", "der")


@dataclass(frozen=True, slots=True)
class Expected:
    """What the report must hold: ``--nonce``, ``--digest`` and ``--policy``."""

    nonce: str | None
    digest: str | None
    policy: str | None

    def read(self) -> ExpectedReport:
        """The values.

        Raises:
            UserError: one has another size, or is no policy.
        """
        from sealift.cli.owner_options import binary
        from sealift.owner.reports import ExpectedReport
        from sealift.sev.policy import parse_policy
        from sealift.sev.report import DIGEST_SIZE, MNONCE_SIZE

        return ExpectedReport(
            None if self.nonce is None else binary("nonce", self.nonce, {MNONCE_SIZE}),
            None if self.digest is None else binary("digest", self.digest, {DIGEST_SIZE}),
            None if self.policy is None else parse_policy(self.policy),
        )


@dataclass(frozen=True, slots=True)
class Written:
    """Where and how the report is written: ``--output``, ``--encoding`` and ``--force``."""

    output: Path | None
    encoding: str
    force: bool

    def write(self, report: AttestationReport) -> None:
        """Write it, if that was asked for.

        Raises:
            UserError: the file exists or cannot be written.
        """
        from sealift.owner.files import OutputFile, write
        from sealift.sev.report import Encoding

        if self.output is None:
            return
        encoding = Encoding[self.encoding.upper()]
        write([OutputFile(self.output, report.written_as(encoding).encode())], replace=self.force)
        click.echo(f"sealift: {self.output} holds the report, its signature as {encoding.value}", err=True)


expected_options = gathered(
    "expected",
    Expected,
    click.option("--nonce", help="The report must answer this nonce, 16 bytes."),
    click.option("--digest", help="The guest must have this launch digest (`sealift owner measure`)."),
    click.option("--policy", help="The guest must have this policy: names joined by commas, or a number."),
)

output_options = gathered(
    "written",
    Written,
    file_option("--output", "Write the report to this file, with its signature in --encoding."),
    click.option(
        "--encoding",
        type=click.Choice(ENCODINGS),
        default=ENCODINGS[0],
        show_default=True,
        help="raw as firmware has it, or DER as sevctl reads it.",
    ),
    force_option,
)


@click.command(
    "report",
    short_help="Read and verify an attestation report.",
    epilog=examples(
        "sealift owner report report.b64 --chain chain.cert --trust ask_ark.cert --nonce 4fbe0bed... --digest 9a1c...",
        "sealift owner report report.bin --chain pek.cert --unverified --output report.der --encoding der",
    ),
)
@click.argument("report", type=str)
@click.option(
    "--chain",
    "files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="The platform's certificates, with its PEK among them.",
)
@trust_options
@expected_options
@output_options
@json_option
def command(
    report: str,
    *,
    files: tuple[Path, ...],
    whom: Trust,
    expected: Expected,
    written: Written,
    as_json: bool,
) -> None:
    """Verify what a platform says about a running guest.

    REPORT is base64 (QMP's query-sev-attestation-report) or a file, raw or base64. Exit status 0 says that a genuine
    platform's PEK signed it and that it is of the expected guest.
    """
    from sealift.cli.owner_options import binary, print_json
    from sealift.owner.reports import check_signature
    from sealift.sev.report import SIZE, AttestationReport

    decoded = AttestationReport.decode(binary("report", report, {SIZE}))
    certificates = whom.load(files)
    if as_json:
        print_json(_described(decoded))
    else:
        _show(decoded)
    check_signature(decoded, certificates)
    expected.read().check(decoded)
    written.write(decoded)
    whom.require(whom.judge(certificates))
    if not as_json:
        click.echo("OK: signed by the platform's PEK")


def _show(report: AttestationReport) -> None:
    for name, value in (
        ("nonce", report.mnonce.hex()),
        ("launch digest", report.launch_digest.hex()),
        ("policy", f"{int(report.policy):#x} ({report.policy.describe()})"),
        ("signature", report.encoding.value),
    ):
        click.echo(f"{name:<14} {value}")


def _described(report: AttestationReport) -> dict[str, Any]:
    return {
        "nonce": report.mnonce.hex(),
        "launch-digest": report.launch_digest.hex(),
        "policy": int(report.policy),
        "encoding": report.encoding.name.lower(),
    }
