"""``sealift plan``: what a migration would cost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from sealift.cli.options import examples, host_option
from sealift.cli.parameter_options import parameter_options, parameters_of
from sealift.cli.places import Host

if TYPE_CHECKING:
    from sealift.vmm.qmp.commands.foresight import ForecastInfo, PlanInfo, RemedyInfo

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)\Z")
_SECONDS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class DurationType(click.ParamType[float]):
    """A time on the command line, with its unit; in seconds."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.match(value.strip())
        if match is None:
            self.fail(f"{value!r} is no time; write it like 300ms, 60s or 5min", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@click.command(
    "plan",
    short_help="Predict what a migration would cost.",
    epilog=examples(
        "sealift plan demo tcp:192.0.2.7:4444",
        "sealift plan demo tcp:192.0.2.7:4444 --downtime 100ms --within 60s",
    ),
)
@click.argument("name")
@click.argument("uri")
@click.option(
    "--downtime",
    type=DurationType(),
    metavar="TIME",
    show_default="the guest's downtime limit",
    help="How long the guest may stand still.",
)
@click.option("--within", type=DurationType(), metavar="TIME", help="How long the migration may take in all.")
@click.option(
    "--sample",
    type=DurationType(),
    default="1s",
    show_default=True,
    metavar="TIME",
    help="How long to look at what the guest writes.",
)
@parameter_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of sentences.")
@host_option
def command(
    host: Host,
    name: str,
    uri: str,
    downtime: float | None,
    within: float | None,
    sample: float,
    *,
    as_json: bool,
    **options: object,
) -> int:
    """Predict a migration of the guest NAME to URI, where a target waits; it neither begins nor ends there.

    What the guest writes is counted while it runs, the way and the cipher are measured, and the migration is played
    through with that. The exit status is 0 if it converges, and 1 if it needs one of the controls that are named.
    `sealift history` shows the prediction beside what became of it.
    """
    import msgspec

    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.watch import once
    from sealift.vmm.qmp.commands.foresight import PlanInfo

    wishes: dict[str, object] = {"uri": uri, "calc_time": sample}
    if downtime is not None:
        wishes["downtime_limit"] = round(downtime * 1e3)
    if within is not None:
        wishes["within"] = within
    with QmpClient(host.run, name, sample + 60.0) as qmp:
        answer = qmp.execute("x-sealift-plan", **wishes, **once(parameters_of(options)))
    made = msgspec.convert(answer, PlanInfo)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        for line in describe(made):
            click.echo(line)
    return 0 if made.forecast.converges else 1


def describe(made: PlanInfo) -> list[str]:
    """A plan in lines."""
    curve = ", ".join(f"{sample.private_pages + sample.shared_pages} in {sample.time:.2f} s" for sample in made.curve)
    lines = [
        f"the guest writes {_speed(made.dirty_rate)}; different pages: {curve}",
        f"the way takes {_speed(made.path.bandwidth)}, {made.path.round_trip * 1e3:.2f} ms there and back",
        f"the migration gets {_speed(made.bandwidth)} of it",
        f"{made.content} pages have content",
    ]
    if made.forecast.converges:
        return [*lines, f"the migration converges: {_cost(made.forecast)}"]
    lines.append(f"the migration does not converge: it gets no further than {_cost(made.forecast)}")
    if not made.remedies:
        return [*lines, "no control alone would make it converge"]
    return lines + [f"it would with {_control(remedy)}: {_cost(remedy.forecast)}" for remedy in made.remedies]


def _speed(bytes_per_s: float) -> str:
    megabytes = bytes_per_s / 1e6
    return f"{megabytes:.0f} MB/s" if megabytes >= 10 else f"{megabytes:.2f} MB/s"


def _cost(forecast: ForecastInfo) -> str:
    mib, seconds = forecast.transferred / (1 << 20), forecast.total_time / 1e3
    return f"{mib:.1f} MiB in {seconds:.2f} s and {forecast.rounds} rounds, {forecast.downtime} ms of downtime"


def _control(remedy: RemedyInfo) -> str:
    match remedy.control:
        case "downtime-limit":
            return f"a downtime limit of {remedy.value} ms"
        case "auto-converge":
            return f"{remedy.value} % of the guest's time taken from it (auto-converge)"
        case _:
            return f"{_speed(remedy.value)} for it (more channels, a faster link)"
