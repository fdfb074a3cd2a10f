"""``sealift owner measure``: what a platform must measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sealift.cli.measured_options import measured_options
from sealift.cli.options import examples
from sealift.cli.owner_options import KeyFiles, Version, json_option, key_options, version_options

if TYPE_CHECKING:
    from sealift.cli.measured_options import MeasuredGuest
    from sealift.owner.measured import MeasuredImage

MNONCE_SIZE = 16


@click.command(
    "measure",
    short_help="The launch digest that a guest must have.",
    epilog=examples(
        "sealift owner measure --kernel vmlinuz --initrd initrd.img --append console=ttyS0",
        "sealift owner measure --kernel ledger --pieces",
        "sealift owner measure --firmware OVMF.fd --kernel vmlinuz --append quiet --policy es --vcpus 4",
        "sealift owner measure --tik vm_tik.bin --tek vm_tek.bin --api 1.55 --build 25 --nonce 4fbe0bed...",
    ),
)
@measured_options
@click.option("--pieces", is_flag=True, help="Print every measured piece first: name, GPA, size, SHA-256.")
@key_options
@version_options
@click.option("--nonce", help="The firmware's nonce, 16 bytes: with a key, print the whole LAUNCH_MEASURE output.")
@json_option
def command(
    *,
    pieces: bool,
    keys: KeyFiles,
    version: Version,
    nonce: str | None,
    as_json: bool,
    **settings: Any,  # noqa: ANN401  # measured_options says
) -> None:
    """Compute a guest's launch digest (SHA-256, hexadecimal) from its files; it is alone on the last line.

    The guest is the one that `sealift run` launches with the same options, on a platform that runs the migration
    handler installed here; or, with --firmware, the one that QEMU launches from that image. Given a session's keys,
    the firmware's version and a nonce, the last line is what LAUNCH_MEASURE must answer: 48 bytes in base64.
    """
    import base64

    from sealift.cli.measured_options import measured_guest
    from sealift.cli.owner_options import binary, print_json
    from sealift.owner.expected import Terms
    from sealift.owner.measured import measure

    transport = keys.read()
    if (transport is None) != (nonce is None):
        raise click.UsageError("a whole measurement needs a session's keys (--tik and --tek, or --tk) and --nonce")
    guest = measured_guest(settings)
    image = measure(guest.image.buffers())
    measured = None
    if transport is not None and nonce is not None:
        terms = Terms(transport, version.read(), guest.policy)
        output = terms.measure(bytes.fromhex(image.digest), binary("nonce", nonce, {MNONCE_SIZE}))
        measured = base64.b64encode(output).decode()
    elif version.given:
        raise click.UsageError("--api and --build go with a session's keys and --nonce")
    if as_json:
        print_json(_described(guest, image) | ({} if measured is None else {"measurement": measured}))
        return
    if pieces:
        _show(image)
    click.echo(measured or image.digest)


def _show(image: MeasuredImage) -> None:
    from sealift.cli.table import print_table

    rows = [
        (piece.name, "-" if piece.gpa is None else f"{piece.gpa:#x}", str(piece.size), piece.sha256)
        for piece in image.pieces
    ]
    print_table(("PIECE", "GPA", "SIZE", "SHA-256"), rows)


def _described(guest: MeasuredGuest, image: MeasuredImage) -> dict[str, Any]:
    """For programs; what only Sealift's own images have is left out of a firmware's."""
    described: dict[str, Any] = {"digest": image.digest, "policy": int(guest.policy), "pieces": image.pieces}
    if guest.recipe is not None:
        described |= {
            "machine": guest.recipe.machine.value,
            "kernel-version": guest.recipe.kernel_version(),
            "handler-digest": guest.recipe.handler_digest.hex(),
        }
    if guest.vcpus is not None and guest.vcpus.files is None:
        described["vcpus"] = {
            "count": guest.vcpus.count,
            "signature": guest.vcpus.signature,
            "sev-features": guest.vcpus.features,
            "fpu": guest.vcpus.fpu.value,
            "fpu-made-by": guest.vcpus.fpu.made_by,
        }
    return described
