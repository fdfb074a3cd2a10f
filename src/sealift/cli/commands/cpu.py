"""``sealift cpu``: CPU models, their ABI levels, and which CPU a guest can keep while it moves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import click

from sealift.cli.engines import ENGINES
from sealift.cli.options import examples

if TYPE_CHECKING:
    from sealift.cpu.description import CpuDescription

_ANY_CPU: Final = """

    A CPU is a model's name, a file that `sealift cpu host --json` or `sealift cpu show --json` wrote (a path with a
    slash, or ending in .json), and changes to either: EPYC-v1,-svm,+x2apic.
    """
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
_RELEASES: Final = ("5.2", "10.2")


@click.group("cpu", short_help="CPU models, ABI levels, and which CPU a guest can move with.")
def command() -> None:
    """Look at CPU models, and choose one that all hosts of a guest can give.

    The models are QEMU's, as QEMU itself described them when this package was made.
    """


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@command.command("list", short_help="The models.", epilog=examples("sealift cpu list", "sealift cpu list --json"))
@_json
def list_models(*, as_json: bool) -> None:
    """List the models with vendor, highest ABI level, number of features and shorter names."""
    from sealift.cli.table import print_table
    from sealift.cpu.levels import levels_of
    from sealift.cpu.library import library

    found = [(model, levels_of(model.features)) for model in library()]
    if as_json:
        _print_json(
            [
                {
                    "name": model.name,
                    "vendor": model.vendor,
                    "levels": levels,
                    "features": len(model.features),
                    "aliases": model.aliases,
                }
                for model, levels in found
            ]
        )
        return
    rows = [
        (model.name, model.vendor, levels[-1] if levels else "-", str(len(model.features)), " ".join(model.aliases))
        for model, levels in found
    ]
    print_table(("MODEL", "VENDOR", "LEVEL", "FEATURES", "ALIASES"), rows)


@command.command(
    "show",
    short_help="What a CPU has.",
    help=f"Show vendor, signature, ABI levels and features of CPU.{_ANY_CPU}",
    epilog=examples("sealift cpu show EPYC-Rome-v2", "sealift cpu show Nehalem,+aes --json > wanted.json"),
)
@click.argument("cpu")
@_json
def show(cpu: str, *, as_json: bool) -> None:
    """Print one CPU."""
    from sealift.cpu.library import library

    _describe(library().resolve(cpu), as_json=as_json)


@command.command(
    "host",
    short_help="What this host has.",
    epilog=examples(
        "sealift cpu host",
        "sealift cpu host --engine auto",
        "sealift cpu host --engine kvm --json > here.json",
    ),
)
@click.option("--engine", type=click.Choice(ENGINES), help="What guests on this engine can have here.")
@_json
def host(engine: str | None, *, as_json: bool) -> None:
    """Show this host's processor; with --engine, what a guest can have of it.

    Guests have less than the processor: what ties one to its host they never see.
    """
    if engine is None:
        from sealift.cpu.host import processor

        _describe(processor(), as_json=as_json)
        return
    from sealift.silicon.engines.given import cpu_of, decide

    name, _ = decide(engine)
    _describe(cpu_of(name), as_json=as_json)


@command.command(
    "levels",
    short_help="The ABI levels of all models.",
    epilog=examples(
        "sealift cpu levels", "sealift cpu levels --format csv", "sealift cpu levels --format csv --release 5.2"
    ),
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(("table", "csv", "json")),
    default="table",
    show_default=True,
    help="csv has the layout of QEMU's docs/system/cpu-models-x86-abi.csv.",
)
@click.option("--release", type=click.Choice(_RELEASES), help="The rows of the table that this release of QEMU has.")
@click.option("--json", "layout", flag_value="json", help="The same as --format json.")
def levels(layout: str, release: str | None) -> None:
    """Say which of the x86-64 ABI levels baseline, v2, v3 and v4 each model reaches.

    Without --release these are the models of `sealift cpu list`. Tables of other releases have models that are not
    among them; their rows are quoted.
    """
    from sealift.cli.table import print_table
    from sealift.cpu.levels import LEVELS
    from sealift.cpu.library import library
    from sealift.cpu.published import rows

    found = rows(library(), release)
    if layout == "json":
        _print_json(found)
        return
    cells = [[model, *("✅" if level in reached else "" for level in LEVELS)] for model, reached in found.items()]
    headings = ["Model", *LEVELS]
    if layout == "csv":
        for row in (headings, *cells):
            click.echo(",".join(row))
        return
    print_table(headings, [[cell.replace("✅", "yes") for cell in row] for row in cells])


@command.command(
    "baseline",
    short_help="The best CPU that all of several hosts can give.",
    help=f"""Print the model, with changes, that all HOSTS can give: what they have in common, of one vendor.

    The answer is what QEMU's -cpu takes. What ties a guest to its host (invtsc, xsaves) is left
    out.{_ANY_CPU}""",
    epilog=examples(
        "sealift cpu baseline a.json b.json", "sealift cpu baseline Haswell-v4 Skylake-Client-v1,-rtm --json"
    ),
)
@click.argument("hosts", nargs=-1, required=True)
@click.option("--migratable/--any", default=True, help="Leave out what ties a guest to its host; the default.")
@_json
def baseline(hosts: tuple[str, ...], *, migratable: bool, as_json: bool) -> None:
    """Print a baseline."""
    from sealift.cpu import choice
    from sealift.cpu.library import library

    found = choice.baseline([library().resolve(name) for name in hosts], library(), migratable=migratable)
    if as_json:
        _print_json({"model": found.model, "vendor": found.vendor, "added": found.added, "removed": found.removed})
        return
    click.echo(str(found))


@command.command(
    "compare",
    short_help="Whether a host can give a CPU.",
    help=f"""Say how the CPU of HOST is to WANTED: incompatible, identical, or a superset; and what is missing.

    Exit status 1 if it is incompatible. Without HOST, it is this host's processor.{_ANY_CPU}""",
    epilog=examples("sealift cpu compare Nehalem b.json", "sealift cpu compare EPYC-Rome-v2 EPYC-v3 --json"),
)
@click.argument("wanted")
@click.argument("host", required=False)
@_json
def compare(wanted: str, host: str | None, *, as_json: bool) -> int:
    """Print a comparison."""
    from sealift.cpu import choice
    from sealift.cpu.host import processor
    from sealift.cpu.library import library

    found = choice.compare(library().resolve(wanted), library().resolve(host) if host else processor())
    if as_json:
        _print_json(
            {
                "result": found.verdict.value,
                "missing": found.missing,
                "extra": found.extra,
                "vendors": found.vendors and {"wanted": found.vendors[0], "host": found.vendors[1]},
            }
        )
    else:
        click.echo(found.verdict.value)
        if found.vendors:
            click.echo(f"vendor   {found.vendors[0]} is wanted, {found.vendors[1] or 'an unknown one'} is there")
        for name, features in (("missing", found.missing), ("extra", found.extra)):
            if features:
                click.echo(f"{name:<9}{' '.join(features)}")
    return 1 if found.verdict is choice.Verdict.INCOMPATIBLE else 0


def _describe(described: CpuDescription, *, as_json: bool) -> None:
    """Print one CPU."""
    import textwrap

    from sealift.cpu.levels import LEVELS, levels_of, missing_for

    if as_json:
        click.echo(described.to_json())
        return
    reached = levels_of(described.features)
    rows = [
        ("name", described.name),
        ("vendor", described.vendor or "any"),
        ("signature", f"family {described.family}, model {described.model}, stepping {described.stepping}"),
        ("levels", " ".join(reached) or "none"),
    ]
    if level := next((level for level in LEVELS if level not in reached), None):
        rows.append((f"no {level}", f"lacks {' '.join(missing_for(level, described.features))}"))
    lines = textwrap.wrap(" ".join(sorted(described.features)), 87, break_on_hyphens=False)
    rows += [("" if number else "features", line) for number, line in enumerate(lines)]
    for name, value in rows:
        click.echo(f"{name:<13}{value}")
