"""``sealift plan``: what a migration would cost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, assert_never

import click

from sealift.cli.options import examples, host_option
from sealift.cli.parameter_options import capabilities_of, parameter_options, parameters_of, target_uri
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
        "sealift plan demo tcp:192.0.2.7:4444 --auto-converge --multifd 4",
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
    through with that, and with what earlier ones took to set up and to hand over. The exit status is 0 if it converges
    in time, and 1 if it needs one of the controls that are named. `sealift history` shows the prediction beside what
    became of it.
    """
    import msgspec

    from sealift.cli.qmp_client import QmpClient
    from sealift.cli.watch import once
    from sealift.vmm.qmp.commands.foresight import PlanInfo

    capabilities = capabilities_of(options)
    wishes: dict[str, object] = {"uri": target_uri(uri), "calc_time": sample}
    if downtime is not None:
        wishes["downtime_limit"] = round(downtime * 1e3)
    if within is not None:
        wishes["within"] = within
    with QmpClient(host.run, name, sample + 60.0) as qmp:
        answer = qmp.execute("x-sealift-plan", **wishes, **once(parameters_of(options), capabilities))
    made = msgspec.convert(answer, PlanInfo)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
    else:
        for line in describe(made):
            click.echo(line)
    return 0 if _suffices(made.forecast) else 1


def describe(made: PlanInfo) -> list[str]:
    """A plan in lines."""
    from sealift.vmm.qmp.commands.foresight import ForecastInfo

    curve = ", ".join(f"{sample.private_pages + sample.shared_pages} in {sample.time:.2f} s" for sample in made.curve)
    lines = [
        f"the guest writes {_speed(made.dirty_rate)}; different pages: {curve}",
        f"the way takes {_speed(made.path.bandwidth)}, {made.path.round_trip * 1e3:.2f} ms there and back",
        f"the migration gets {_speed(made.bandwidth)} of it",
        f"{made.content} pages have content",
        f"setting up takes {made.setup_time} ms and the handover {made.standstill} ms, {_source(made)}",
    ]
    cost = _cost(made.forecast)
    match made.forecast:
        case forecast if _suffices(forecast):
            return [*lines, f"the migration converges: {cost}"]
        case ForecastInfo(converges=True):
            lines.append(f"the migration converges, but not in time: {cost}")
        case _:
            lines.append(f"the migration does not converge: it gets no further than {cost}")
    if not made.remedies:
        return [*lines, "no control alone would do"]
    return lines + [f"it would with {_control(remedy)}: {_cost(remedy.forecast)}" for remedy in made.remedies]


def _suffices(forecast: ForecastInfo) -> bool:
    return forecast.converges and forecast.in_time


def _speed(bytes_per_s: float) -> str:
    megabytes = bytes_per_s / 1e6
    return f"{megabytes:.0f} MB/s" if megabytes >= 10 else f"{megabytes:.2f} MB/s"


def _source(made: PlanInfo) -> str:
    if not made.on_record:
        return "which is assumed: no such migration is on record"
    return f"as in {made.on_record} such migration{'s' if made.on_record > 1 else ''} on record"


def _cost(forecast: ForecastInfo) -> str:
    mib, seconds = forecast.transferred / (1 << 20), forecast.total_time / 1e3
    cost = f"{mib:.1f} MiB in {seconds:.2f} s and {forecast.rounds} rounds, {forecast.downtime} ms of downtime"
    if not forecast.cpu_throttle_percentage:
        return cost
    return f"{cost}, and {forecast.cpu_throttle_percentage} % of the guest's time taken from it"


def _control(remedy: RemedyInfo) -> str:
    from sealift.vmm.migration.forecast import Control

    value = remedy.value
    match remedy.control:
        case Control.DOWNTIME_LIMIT:
            return f"a downtime limit of {value} ms (--downtime-limit {value})"
        case Control.CPU_THROTTLE_INITIAL:
            return f"auto-converge from {value} % on (--auto-converge --parameter cpu-throttle-initial={value})"
        case Control.MAX_BANDWIDTH:
            return f"{_speed(value)} for it (--max-bandwidth {value})"
        case Control.MULTIFD_CHANNELS:
            return f"{value} channels (--multifd {value})"
        case Control.WAY:
            return f"a way that takes {_speed(value)}"
        case other:
            assert_never(other)
