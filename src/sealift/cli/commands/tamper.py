"""``sealift tamper``: the network between two hosts, which does to a migration what it is told."""

from __future__ import annotations

import contextlib
import queue
import secrets
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from sealift.cli.options import examples
from sealift.errors import UserError

if TYPE_CHECKING:
    from sealift.tamper.events import Entry, Summary
    from sealift.tamper.relay import Tamperer
    from sealift.vmm.migration.transport import NetworkAddress

_SEEDS: Final = 1 << 32
_FOR_THE_USER: Final = 0o600

_RULES: Final = [
    ("drop:final", "VERB:MESSAGE"),
    ("repeat:record#3", "#N: the third of its kind on its connection"),
    ("drop:record#3..20", "#N..M: one of these, which the seed chooses"),
    ("delay:ram#*=50ms", "#*: each of them, on every connection; =TIME: how long it waits"),
    ("drop:record/2#5", "/CHANNEL: on that channel's connection; without it the stream, which is channel 0"),
    ("flip:record#10@bit=77", "@bit=N, @byte=N: a place in its content; without it the seed chooses"),
    ("reorder:record#4,record#5", "the first goes behind the second"),
    ("cut:target>started", "source>, target>: who sends it"),
    ("cut:source>bytes@byte=9000", "any byte of a side's connection"),
]
"""The grammar, by example."""


class _Command(click.Command):
    """A command whose help lists messages and verbs."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lists, then the examples."""
        from sealift.tamper.messages import KINDS, Side
        from sealift.tamper.rules import Verb

        with formatter.section("Rules"):
            formatter.write_dl(_RULES)
        with formatter.section("Verbs (the message …)"):
            formatter.write_dl([(verb.value, verb.words) for verb in Verb])
        for title, side in (("the source", Side.SOURCE), ("the target", Side.TARGET), ("both", None)):
            with formatter.section(f"Messages of {title}"):
                formatter.write_dl([(name, kind.words) for name, kind in KINDS.items() if kind.side is side])
        super().format_epilog(ctx, formatter)


@click.command(
    "tamper",
    cls=_Command,
    short_help="Be the hostile network between two hosts.",
    epilog=examples(
        "sealift tamper --listen tcp:127.0.0.1:5555 --to tcp:192.0.2.7:4444 --rule drop:final",
        "sealift tamper --listen unix:/tmp/way --to unix:/tmp/b --rule flip:record#10@bit=77 --rule delay:prepared=2s",
        "sealift tamper --listen tcp:127.0.0.1:5555 --to tcp:b:4444 --rule drop:record#1..50 --seed 7 --once --json",
    ),
)
@click.option(
    "--listen", metavar="URI", required=True, help="Where the source migrates to: tcp:HOST:PORT or unix:PATH."
)
@click.option("--to", "target", metavar="URI", required=True, help="Where the target waits.")
@click.option("--rule", "rules", metavar="RULE", multiple=True, help="What to do to which message; may be repeated.")
@click.option(
    "--seed", type=click.IntRange(0), help="Decides what rules leave open. Default: a new one, which is shown."
)
@click.option("--trace", is_flag=True, help="Log every message, not only what is done to one.")
@click.option("--once", is_flag=True, help="End by itself when the first migration that came by is over.")
@click.option(
    "--json", "as_json", is_flag=True, help="Log JSON, an object a line, on standard output; the last is a summary."
)
def command(
    listen: str, target: str, rules: tuple[str, ...], seed: int | None, *, trace: bool, once: bool, as_json: bool
) -> int:
    """Stand between two hosts, and do to the messages of a migration what rules say, until Ctrl-C.

    The source migrates to the URI of --listen, and everything is passed on to the target and back. A rule says what
    happens to the first such message of the first connection that has one.

    What TLS encrypts, and whatever else is not understood, passes as it comes: there only `bytes` can be delayed,
    flipped, or the link cut. Exit status: 0 if every rule was carried out, 1 if one was not.
    """
    from sealift.tamper.relay import Road, Tamperer
    from sealift.tamper.rulebook import Rulebook
    from sealift.tamper.rules import Chances, parse
    from sealift.vmm.migration.transport import Listener, connect

    book = Rulebook([parse(rule) for rule in rules], Chances(secrets.randbelow(_SEEDS) if seed is None else seed))
    to = _address(target)
    listener = Listener(_address(listen), unix_mode=_FOR_THE_USER)
    try:
        tamperer = Tamperer(Road(listener, lambda: connect(to)), book, _log(trace=trace, as_json=as_json))
        click.echo(f"sealift: tampering at {listener.address}, on the way to {to}, with seed {book.seed}", err=True)
        _until_it_ends(tamperer, once=once)
    finally:
        listener.close()
    summary = tamperer.summary()
    _show(summary, as_json=as_json)
    return 0 if all(rule.times for rule in summary.rules) else 1


def _address(uri: str) -> NetworkAddress:
    from sealift.vmm.migration.transport import TcpAddress, UnixAddress, parse_uri

    address = parse_uri(uri)
    if not isinstance(address, TcpAddress | UnixAddress):
        raise UserError(f"a network is between sockets, not at {uri}; write tcp:HOST:PORT or unix:PATH")
    return address


def _until_it_ends(tamperer: Tamperer, *, once: bool) -> None:
    """Carry until a signal, or with `once` to the end of the first migration."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # putting is safe in a signal handler
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda which, _: ended.put(which))
    serving = threading.Thread(target=tamperer.serve, name="tamper", daemon=True)
    serving.start()
    if once:
        threading.Thread(target=lambda: ended.put(int(tamperer.first_over.wait())), daemon=True).start()
    ended.get()
    tamperer.close()
    serving.join()


def _log(*, trace: bool, as_json: bool) -> Callable[[Entry], None]:
    import msgspec

    from sealift.tamper.events import Event

    def log(entry: Entry) -> None:
        if entry.event is Event.MESSAGE and not trace:
            return
        with contextlib.suppress(BrokenPipeError):  # who read our log has enough; what passes passes on
            click.echo(msgspec.json.encode(entry).decode() if as_json else entry.line())

    return log


def _show(summary: Summary, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    for line in summary.lines():
        click.echo(line)
