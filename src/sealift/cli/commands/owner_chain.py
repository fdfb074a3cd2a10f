"""``sealift owner chain``: reads, verifies and converts certificate chains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sealift.cli.options import examples, file_option
from sealift.cli.owner_options import Trust, force_option, json_option, trust_options
from sealift.cli.places import Host, default_host

if TYPE_CHECKING:
    from sealift.owner.judgement import Judgement
    from sealift.sev.certfile import CertificateSet
    from sealift.sev.chain import AnyCertificate

LAYOUTS = ("pdh", "cert-chain", "platform", "full", "ca")

_DEFAULT_HOST: Final = "-"
"""Stands for it where --host names none: where it is, is known only when the command runs."""


@click.command(
    "chain",
    short_help="Read and verify a platform's certificates.",
    epilog=examples(
        "sealift owner chain chain.cert --trust ask_ark.cert",
        "sealift owner chain pdh.cert cert_chain.cert --ca ask_ark_milan.cert",
        "sealift owner chain --host --output pdh.cert --layout pdh",
    ),
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--host",
    "directory",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value=_DEFAULT_HOST,
    metavar="[DIRECTORY]",
    help="Take the certificates of a local host's platform; without a directory, the default host's.",
)
@trust_options
@file_option("--output", "Write the certificates to this file.")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="How to write them: pdh; cert-chain (PEK||OCA||CEK); platform (PDH||PEK||OCA||CEK); full, with ASK||ARK; ca "
    "(ASK||ARK). Without, as many as there are.",
)
@click.option("--base64", "as_base64", is_flag=True, help="Write base64 text, as QEMU and libvirt have it.")
@force_option
@json_option
def command(
    files: tuple[Path, ...],
    *,
    directory: Path | None,
    whom: Trust,
    as_json: bool,
    **output: Any,  # noqa: ANN401  # _write says
) -> None:
    """Read certificates in any tool's layout, raw or base64, and verify every signature among them.

    Exit status 0 says that the chain is complete and genuine, up to a root that is trusted; with --unverified, that
    it could be read.
    """
    from sealift.cli.owner_options import print_json

    if bool(files) == (directory is not None):
        raise click.UsageError("give files of certificates, or --host")
    certificates = whom.load(files) if directory is None else _of_host(_host(directory))
    judgement = whom.judge(certificates)
    if as_json:
        print_json(_described(certificates, judgement))
    else:
        _show(certificates, judgement)
    if output["output"] is not None:
        _write(certificates, **output)
    elif output["layout"] or output["as_base64"]:
        raise click.UsageError("--layout and --base64 say how --output is written")
    whom.require(judgement)


def _host(directory: Path) -> Host:
    return default_host() if str(directory) == _DEFAULT_HOST else Host(directory.absolute())


def _of_host(host: Host) -> CertificateSet:
    """The certificates of a local host's platform, with the manufacturer's."""
    from sealift.cli.host_platform import open_platform

    with open_platform(host) as platform:
        return platform.certificates()


def _write(certificates: CertificateSet, *, output: Path, layout: str | None, as_base64: bool, force: bool) -> None:
    from sealift.owner.files import OutputFile, write
    from sealift.sev.certfile import Layout

    wanted = certificates.layout if layout is None else Layout(layout)
    if wanted is None:
        raise click.UsageError("these certificates are no layout that tools know; say which one with --layout")
    data = certificates.encode(wanted)
    write([OutputFile.base64(output, data) if as_base64 else OutputFile(output, data)], replace=force)
    click.echo(f"sealift: {output} holds {' || '.join(usage.name for usage in wanted.usages)}", err=True)


def _show(certificates: CertificateSet, judgement: Judgement) -> None:
    from sealift.cli.table import print_table
    from sealift.owner.judgement import whose

    faults = {(link.subject.name, link.issuer.name): link.fault for link in judgement.links}
    rows = []
    for cert in certificates.certificates.values():
        name = cert.usage.name
        signers = ", ".join(f"{signer} ({_word(faults.get((name, signer)))})" for signer in _signers(cert))
        rows.append((name, _key(cert), _api(cert), cert.fingerprint().hex()[:16], signers or "nobody"))
    print_table(("CERTIFICATE", "KEY", "API", "FINGERPRINT", "SIGNED BY"), rows)
    if certificates.root is not None:
        click.echo(f"root {certificates.root.fingerprint().hex()}, {whose(certificates.root)}")
    if judgement.genuine:
        click.echo("genuine: every signature is valid, up to a root that is trusted here")


def _word(fault: str | None) -> str:
    """What is known of a signature; None if its signer's certificate is not here."""
    if fault is None:
        return "not here"
    return "INVALID" if fault else "valid"


def _signers(cert: AnyCertificate) -> list[str]:
    """The names of those who signed, as the certificate has it."""
    from sealift.sev.ca import CaCertificate
    from sealift.sev.certificate import Usage

    if isinstance(cert, CaCertificate):
        return [Usage.ARK.name] if cert.signature else []
    known = {usage.value: usage.name for usage in Usage}
    return [known.get(slot.usage, f"{slot.usage:#x}") for slot in cert.signatures if not slot.empty]


def _key(cert: AnyCertificate) -> str:
    """The kind of key in words, such as ``ECDH P-384``."""
    from sealift.errors import StreamError
    from sealift.sev.ca import CaCertificate

    try:
        key = cert.key()
    except StreamError:
        return "INVALID"
    if isinstance(cert, CaCertificate):
        return f"RSA {key.key_size}"
    kind, curve = cert.algorithm.name.partition("_")[0], "" if cert.algorithm.is_rsa else "P-"
    return f"{kind} {curve}{key.key_size}"


def _api(cert: AnyCertificate) -> str:
    from sealift.sev.certificate import Certificate

    return "{}.{}".format(*cert.api) if isinstance(cert, Certificate) else "-"


def _described(certificates: CertificateSet, judgement: Judgement) -> dict[str, Any]:
    """For programs."""
    root = certificates.root
    return {
        "layout": None if certificates.layout is None else certificates.layout.value,
        "certificates": [
            {
                "usage": cert.usage.name,
                "key": _key(cert),
                "api": _api(cert),
                "fingerprint": cert.fingerprint().hex(),
                "signed-by": _signers(cert),
            }
            for cert in certificates.certificates.values()
        ],
        "links": [
            {"subject": link.subject.name, "issuer": link.issuer.name, "valid": not link.fault, "fault": link.fault}
            for link in judgement.links
        ],
        "root": None if root is None else {"fingerprint": root.fingerprint().hex(), "key-id": root.key_id.hex()},
        "genuine": judgement.genuine,
        "faults": judgement.faults,
    }
