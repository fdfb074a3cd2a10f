"""``sealift owner validate``: whether a platform measured what the owner expects, and if not, what it measured."""

from __future__ import annotations

from typing import Any

import click

from sealift.cli.measured_options import measured_options
from sealift.cli.options import examples
from sealift.cli.owner_options import KeyFiles, Version, json_option, key_options, version_options

_MISMATCH = 1
_UNEXPLAINED = "no change of one or two inputs that was tried gives it (another session's keys, or other files?)"


@click.command(
    "validate",
    short_help="Whether a measurement is the expected one; if not, what differs.",
    epilog=examples(
        "sealift owner validate --measurement pYb2... --tik vm_tik.bin --tek vm_tek.bin --api 1.55 --build 25",
        "sealift owner validate --measurement measure.b64 --tk tmp_tk.bin --api 1.55 --build 25 --firmware OVMF.fd",
    ),
)
@click.option(
    "--measurement", required=True, help="The LAUNCH_MEASURE output: base64 (query-sev-launch-measure), or a file."
)
@key_options
@version_options
@measured_options
@json_option
def command(
    *,
    measurement: str,
    keys: KeyFiles,
    version: Version,
    as_json: bool,
    **settings: Any,  # noqa: ANN401  # measured_options says
) -> int:
    """Recompute a measurement from the files, and compare.

    Exit status 0 says that the guest is what it must be, under the policy it must have, on the firmware that was
    named. If the measurement differs, the inputs are changed one by one, then two at a time, and those changes are
    named that give exactly the measured value.
    """
    from sealift.cli.measured_options import measured_guest
    from sealift.cli.owner_options import binary, print_json
    from sealift.owner.expected import Expectation, Terms
    from sealift.sev.measurement import SIZE

    transport, firmware = keys.require(), version.read()
    measured = binary("measurement", measurement, {SIZE})
    guest = measured_guest(settings)
    expectation = Expectation(guest.image, Terms(transport, firmware, guest.policy))
    matches = expectation.matches(measured)
    found = [] if matches else expectation.diagnose(measured)
    if as_json:
        print_json({"matches": matches, "would-match-with": found})
    elif matches:
        click.echo(f"OK: the guest is the expected one, policy {int(guest.policy):#x} ({guest.policy.describe()})")
    if not matches:
        _explain(found)
    return 0 if matches else _MISMATCH


def _explain(found: list[tuple[str, ...]]) -> None:
    others = "; or with ".join(", and ".join(changes) for changes in found)
    reason = f"it is exactly the one with {others}" if found else _UNEXPLAINED
    click.echo(f"sealift: the measurement is NOT the expected one: {reason}", err=True)
