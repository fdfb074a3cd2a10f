"""``sealift bench``: figures for this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sealift.cli.options import SizeType, engine_option, examples
from sealift.wire.record import MAX_CHANNELS


@click.group("bench", short_help="Measure this machine: sealed memory in motion, exits, boots, debugging, idle guests.")
def command() -> None:
    """Measure what Sealift costs on this machine, with real processes and in one run with what it is compared to."""


@command.command(
    "migrate",
    short_help="Sealed memory in motion, beside the raw pipe and QEMU.",
    epilog=examples(
        "sealift bench migrate --size 1G --against qemu",
        "sealift bench migrate --size 256M --runs 5 --json | jq .ratio",
    ),
)
@click.option("--size", type=SizeType(), default="1G", show_default=True, help="Random private memory to move.")
@click.option(
    "--channels",
    type=click.IntRange(1, MAX_CHANNELS),
    default=1,
    show_default=True,
    help="Sealed streams of the ring.",
)
@click.option(
    "--dirty-rate",
    type=SizeType(),
    default="0",
    show_default=True,
    help="What the guest writes in a second meanwhile, at most.",
)
@click.option("--against", type=click.Choice(["qemu"]), help="Have QEMU move as much: in plaintext, by TLS, multifd.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Of each; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def migrate(against: str | None, *, as_json: bool, **what: Any) -> None:  # noqa: ANN401  # Wanted says
    """Move a guest's private memory between VMM processes over loopback TCP, and as much through the raw pipe.

    The raw pipe is the least that this can cost: two processes, AES-GCM and a socket. Rates are private bytes over
    the time of the transfer phase, in which all memory has been touched before. Needs memory of five times the size,
    and of seven times beside QEMU, whose memory always stands still.
    """
    import msgspec

    from sealift.cli.bench.migrate import Wanted, measure_migration
    from sealift.cli.bench.show import show_migration
    from sealift.cli.scratch import scratch

    with _saying() as say, scratch("bench") as place:
        result = measure_migration(place, Wanted(against_qemu=against is not None, **what), say)
    click.echo(msgspec.json.encode(result).decode() if as_json else show_migration(result))


@command.command(
    "exits",
    short_help="A guest's exits, beside a bare ping-pong.",
    epilog=examples("sealift bench exits --engine kvm", "sealift bench exits --runs 9 --json | jq .ratio"),
)
@engine_option
@click.option("--exits", type=click.IntRange(min=1), default=20_000, show_default=True, help="Round trips in a run.")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True, help="Of each; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def exits(engine: str, exits: int, runs: int, *, as_json: bool) -> None:
    """Have a guest write to a port, and compare what each exit to the VMM takes with a bare ping-pong.

    The ping-pong is the least that two processes can do over a socket. Between the two: a vCPU's exchange without a
    guest. What an exit of the guest takes beyond it is the engine's part, and that of the vCPU's two threads.
    """
    import msgspec

    from sealift.cli.bench.exits import measure_exits
    from sealift.cli.bench.show import show_exits
    from sealift.cli.scratch import scratch

    with _saying() as say, scratch("bench") as place:
        result = measure_exits(place, engine, exits, runs, say)
    click.echo(msgspec.json.encode(result).decode() if as_json else show_exits(result))


@command.command(
    "boot",
    short_help="A Linux guest's way to its init, and its exits.",
    epilog=examples(
        "sealift bench boot --runs 1",
        "sealift bench boot --against 'python3 -u one.py {kernel} {initrd}' --since running --until 'linux '",
    ),
)
@engine_option
@click.option("--vcpus", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--memory", type=SizeType(), default="256M", show_default=True, help="Guest RAM.")
@click.option("--against", metavar="COMMAND", help="Another VMM that boots {kernel} with {initrd}, to compare with.")
@click.option("--until", metavar="TEXT", default="linux ", show_default=True, help="What it prints then.")
@click.option(
    "--since",
    metavar="TEXT",
    default="",
    show_default="its own start",
    help="What it prints as it lets the guest run: where our own clock begins.",
)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Of each; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def boot(
    runs: int,
    against: str | None,
    until: str,
    since: str,
    *,
    as_json: bool,
    **shape: Any,  # noqa: ANN401  # Shape says
) -> None:
    """Boot the guest of `sealift demo --linux` to its init, and count its exits to the VMM on the way.

    Every exit is a round trip between two processes, which a VMM that is one process does not make. With another one
    to compare with, the boot may take as long as that one, a bare ping-pong for each exit, and a fifth more.
    """
    import msgspec

    from sealift.cli.bench.boot import Against, Shape, measure_boot
    from sealift.cli.bench.show import show_boot
    from sealift.cli.scratch import scratch

    other = None if against is None else Against(against, until, since)
    with _saying() as say, scratch("bench") as place:
        result = measure_boot(place, Shape(**shape), other, runs, say)
    click.echo(msgspec.json.encode(result).decode() if as_json else show_boot(result))


@command.command(
    "idle",
    short_help="What a guest costs that does nothing.",
    epilog=examples("sealift bench idle", "sealift bench idle --json | jq '.guests[].vmm_cpu_s'"),
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def idle(*, as_json: bool) -> None:
    """Watch idle guests of two sizes: processor time, the VMM's peak memory, a round without pages, the downtime."""
    import msgspec

    from sealift.cli.bench.idle import measure_idle
    from sealift.cli.bench.show import show_idle
    from sealift.cli.scratch import scratch

    with _saying() as say, scratch("bench") as place:
        result = measure_idle(place, say)
    click.echo(msgspec.json.encode(result).decode() if as_json else show_idle(result))


@command.command(
    "debug",
    short_help="Reads of private memory and dumps, beside a plain guest's.",
    epilog=examples("sealift bench debug --size 256M", "sealift bench debug --json | jq .dump_ratio"),
)
@click.option("--size", type=SizeType(), default="1G", show_default=True, help="Random memory of each guest.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="Of each; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def debug(size: int, runs: int, *, as_json: bool) -> None:
    """Read and dump a guest whose policy lets its host debug it, and a plain guest with as much memory.

    Private memory goes through the secure processor's DBG_DECRYPT, to another process and back. Needs memory of four
    times the size, and a temporary directory with room for it.
    """
    import msgspec

    from sealift.cli.bench.debug import measure_debug
    from sealift.cli.bench.show import show_debug
    from sealift.cli.scratch import scratch

    with _saying() as say, scratch("bench") as place:
        result = measure_debug(place, size, runs, say)
    click.echo(msgspec.json.encode(result).decode() if as_json else show_debug(result))


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """Says what is being measured: behind a spinner on a terminal, in lines elsewhere; always on standard error."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(f"sealift: {text}", soft_wrap=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(f"[cyan]{text} …")
