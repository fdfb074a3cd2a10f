"""``sealift firmware``: descriptors of firmware images, which one fits a guest, and what an image supports."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sealift.cli.options import F, examples

if TYPE_CHECKING:
    from sealift.firmware.lookup import Found, Lookup
    from sealift.firmware.selection import Wanted

_MACHINE_ALIASES: Final = {"q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2"}
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
_dirs = click.option(
    "--dir",
    "dirs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Look here instead; several times, the most specific last.",
)


@click.group("firmware", short_help="Firmware images: their descriptors, and what they support.")
def command() -> None:
    """Look at the firmware images that QEMU's descriptors tell of, and choose one for a guest.

    Descriptors are looked up in /usr/share/qemu/firmware, /etc/qemu/firmware and ~/.config/qemu/firmware; a file of the
    same name in a later directory takes an earlier one's place, and an empty one hides it.
    """


def _look(dirs: tuple[Path, ...]) -> Lookup:
    """What is there; a warning for everything that cannot be used."""
    from sealift.firmware.lookup import directories, look_up

    found = look_up(dirs or directories())
    for reason in found.unreadable:
        click.echo(f"sealift: warning: {reason}", err=True)
    for file in found.files:
        if file.problem:
            click.echo(f"sealift: warning: {file.path} is passed over: {file.problem}", err=True)
    return found


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


@command.command(
    "list",
    short_help="The descriptors, in order of preference.",
    epilog=examples("sealift firmware list", "sealift firmware list --json | jq -r '.[].path'"),
)
@_dirs
@_json
def list_descriptors(dirs: tuple[Path, ...], *, as_json: bool) -> None:
    """List the descriptors that count, the first to be tried first."""
    from sealift.cli.table import print_table

    files = [file for file in _look(dirs).files if file.descriptor is not None]
    if as_json:
        _print_json([_as_dict(file) for file in files])
        return
    rows = [
        tuple(map(_words, (file.name, found.interface_types, found.mapping.device, found.mapping.path, found.features)))
        for file in files
        if (found := file.descriptor) is not None
    ]
    print_table(("NAME", "INTERFACES", "DEVICE", "IMAGE", "FEATURES"), rows)


def _as_dict(file: Found) -> dict[str, object]:
    return {
        "name": file.name,
        "path": str(file.path),
        "replaces": [str(path) for path in file.replaced],
        "descriptor": file.descriptor,
    }


@command.command(
    "show",
    short_help="One descriptor.",
    epilog=examples("sealift firmware show 60-edk2-x86_64.json", "sealift firmware show 60-edk2-x86_64.json --json"),
)
@click.argument("name")
@_dirs
@_json
def show(name: str, dirs: tuple[Path, ...], *, as_json: bool) -> None:
    """Show the descriptor with the file name NAME, and what it takes the place of."""
    import msgspec

    from sealift.errors import UserError

    found = next((file for file in _look(dirs).files if file.name == name), None)
    if found is None:
        raise UserError(f"there is no firmware descriptor {name}; `sealift firmware list` has their names")
    if found.descriptor is None:
        raise UserError(
            f"{found.path} {'cannot be used' if found.problem else 'is empty, and hides those of its name'}"
        )
    if as_json:
        _print_json(_as_dict(found))
        return
    click.echo(f"{'file':<16}{found.path}")
    for path in found.replaced:
        click.echo(f"{'replaces':<16}{path}")
    for key, value in msgspec.to_builtins(found.descriptor).items():
        click.echo(f"{key:<16}{_words(value)}".rstrip())


def _words(value: object) -> str:
    match value:
        case dict():
            return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
        case list() | tuple():
            return " ".join(_words(inner) for inner in value)
        case str() if not value.isprintable():
            return repr(value)  # nobody's descriptor writes to a terminal as it likes
        case _:
            return str(value)


def _wanted_options(function: F) -> F:
    options = [
        click.option("--arch", default="x86_64", show_default=True, help="Architecture."),
        click.option("--machine", help="Machine, such as pc-q35-7.2; no alias."),
        click.option("--interface", type=click.Choice(("bios", "openfirmware", "uboot", "uefi"))),
        click.option("--feature", "features", multiple=True, help="A feature it must have; several times."),
        click.option("--without", multiple=True, help="A feature it must not have; several times."),
        click.option("--smm/--no-smm", default=None, help="Whether it must require SMM, or must not."),
        click.option("--device", type=click.Choice(("flash", "igvm", "kernel", "memory"))),
        click.option(
            "--mode", type=click.Choice(("split", "combined", "stateless")), default="split", show_default=True
        ),
        click.option("--format", type=click.Choice(("raw", "qcow2")), help="Of a flash image."),
        click.option("--image", "path", help="The image it must be."),
    ]
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)


@command.command(
    "select",
    short_help="Which firmware a guest would get.",
    epilog=examples(
        "sealift firmware select --machine pc-q35-7.2 --interface uefi --feature amd-sev",
        "sealift firmware select --machine pc-q35-7.2 --without secure-boot --explain",
    ),
)
@_wanted_options
@click.option("--explain", is_flag=True, help="Say of every descriptor why it is not the one.")
@_dirs
@_json
def select(dirs: tuple[Path, ...], *, explain: bool, as_json: bool, **options: Any) -> int:  # noqa: ANN401  # click's values
    """Print the image of the first descriptor that has all that is asked for; exit status 1 if none has.

    The rules are libvirt's. A combined or stateless flash image is chosen only if --mode asks for it.
    """
    from sealift.errors import UserError
    from sealift.firmware.selection import judge

    judged = judge(_look(dirs).files, _wanted(options))
    chosen = next((one.found for one in judged if not one.reasons), None)
    if as_json:
        told = [{"name": one.found.name, "reasons": one.reasons} for one in judged]
        _print_json({"chosen": _as_dict(chosen) if chosen else None, **({"explained": told} if explain else {})})
        return 0 if chosen else 1
    if explain:
        for one in judged:
            click.echo(f"{one.found.name}: {'; '.join(one.reasons) or 'chosen'}", err=True)
    if chosen is None or chosen.descriptor is None:
        hint = "" if explain else "; --explain says why"
        raise UserError(f"no firmware descriptor has all that is asked for{hint}")
    click.echo(chosen.descriptor.mapping.path)
    return 0


def _wanted(options: dict[str, Any]) -> Wanted:
    from sealift.firmware.descriptor import ARCHITECTURES, FEATURES
    from sealift.firmware.selection import Wanted

    architecture, machine = options.pop("arch"), options["machine"]
    features, without = frozenset(options.pop("features")), frozenset(options.pop("without"))
    for name in sorted(features | without):
        if name not in FEATURES:
            raise click.UsageError(f"there is no firmware feature {name!r}; there are {', '.join(FEATURES)}")
    if both := features & without:
        raise click.UsageError(f"{', '.join(sorted(both))} cannot be wanted and unwanted at once")
    if architecture not in ARCHITECTURES:
        raise click.UsageError(f"there is no architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    if machine in _MACHINE_ALIASES:
        concrete = _MACHINE_ALIASES[machine]
        raise click.UsageError(f"{machine} is an alias, and descriptors name machines, such as {concrete}")
    return Wanted(architecture, features=features, without=without, **options)


@command.command(
    "validate",
    short_help="Look for faults in descriptors.",
    epilog=examples("sealift firmware validate", "sealift firmware validate my-firmware.json"),
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@_dirs
@_json
def validate(files: tuple[Path, ...], dirs: tuple[Path, ...], *, as_json: bool) -> int:
    """Say what is wrong with FILES, or with every descriptor that is looked up; exit status 1 if anything is.

    That includes what does not keep a descriptor from being used: features that are not known, features that
    contradict each other, images that are not there.
    """
    from sealift.errors import StreamError
    from sealift.firmware.descriptor import decode, faults
    from sealift.firmware.lookup import directories, look_up, read

    unreadable: tuple[str, ...] = ()
    paths = files
    if not files:
        found = look_up(dirs or directories())
        paths, unreadable = tuple(file.path for file in found.files if not file.masked), found.unreadable
    result: dict[str, list[str]] = {}
    for path in paths:
        try:
            result[str(path)] = faults(decode(read(path)))
        except StreamError as error:
            result[str(path)] = [str(error)]
    if as_json:
        _print_json({"files": result, "unreadable": unreadable})
    else:
        for reason in unreadable:
            click.echo(reason)
        for name, wrong in result.items():
            for fault in wrong or ["good"]:
                click.echo(f"{name}: {fault}")
    return 1 if unreadable or any(result.values()) else 0


@command.command(
    "inspect",
    short_help="What an image supports.",
    epilog=examples("sealift firmware inspect /usr/share/ovmf/OVMF.fd", "sealift firmware inspect OVMF.fd --json"),
)
@click.argument("file", type=click.Path(path_type=Path))
@_json
def inspect(file: Path, *, as_json: bool) -> None:
    """Read the GUIDed table at the end of the image FILE, and say what the image supports.

    amd-sev itself cannot be seen there.
    """
    from sealift.firmware.image import inspect as look

    found = look(file)
    if as_json:
        _print_json(found)
        return
    click.echo(f"size  {found.size} bytes")
    for entry in found.entries:
        click.echo(f"{entry.name:<20}{entry.says} ({entry.guid})")
    if not found.entries:
        click.echo("no GUIDed table")
    for feature, supported in found.supports.items():
        click.echo(f"{feature:<20}{'yes' if supported else 'no'}")
