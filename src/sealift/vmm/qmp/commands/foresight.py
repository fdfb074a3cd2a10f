"""Before a migration: dirty rate (qapi/migration.json), and of our own, preflight and plan."""

from __future__ import annotations

import enum

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.migration.dirtyrate import DirtyRateStatus, MachineWrites, Sample
from sealift.vmm.migration.forecast import Control, Forecast
from sealift.vmm.migration.plan import SAMPLE_S, Wishes
from sealift.vmm.migration.preflight import Path
from sealift.vmm.qmp.commands.migration_parameters import Once
from sealift.vmm.qmp.message import QmpError
from sealift.vmm.qmp.table import Command, Runs

_MIB = 1 << 20


class TimeUnit(enum.Enum):
    """QEMU's TimeUnit."""

    SECOND = "second"
    MILLISECOND = "millisecond"


class Mode(enum.Enum):
    """QEMU's DirtyRateMeasureMode."""

    PAGE_SAMPLING = "page-sampling"
    DIRTY_RING = "dirty-ring"
    DIRTY_BITMAP = "dirty-bitmap"


class CalcDirtyRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """QEMU's arguments of calc-dirty-rate; without `mode` it is the one there is."""

    calc_time: int
    calc_time_unit: TimeUnit = TimeUnit.SECOND
    sample_pages: int | None = None
    mode: Mode = Mode.DIRTY_BITMAP


class QueryDirtyRate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """QEMU's argument of query-dirty-rate."""

    calc_time_unit: TimeUnit = TimeUnit.SECOND


class DirtySample(msgspec.Struct, frozen=True, rename="kebab"):
    """Different pages written in the first `time` seconds, by plane."""

    time: float
    private_pages: int
    shared_pages: int


class DirtyRateInfo(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """QEMU's DirtyRateInfo, the rate in MiB a second, and the curve it is the end of."""

    status: DirtyRateStatus
    start_time: int
    calc_time: int
    calc_time_unit: TimeUnit
    sample_pages: int
    mode: Mode
    dirty_rate: int | None = None
    x_sealift_curve: tuple[DirtySample, ...] = ()


class ToTarget(Once, frozen=True, forbid_unknown_fields=True):
    """A target, named as for migrate."""

    uri: str


class PlanArguments(Once, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A target, and what is asked of a migration there: ms of downtime, seconds in all; seconds to look before."""

    uri: str
    downtime_limit: int | None = None
    within: float | None = None
    calc_time: float = SAMPLE_S


class PathInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """A way: bytes a second, and seconds there and back."""

    bandwidth: float
    round_trip: float

    @classmethod
    def of(cls, path: Path) -> PathInfo:
        """As QMP has it."""
        return cls(path.bytes_per_s, path.round_trip_s)


class ObstacleInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """One thing in the way: a stable code, `blocker` or `warning`, and a sentence."""

    code: str
    severity: str
    reason: str


class PreflightInfo(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """Whether a migration is possible, and everything that is in its way."""

    possible: bool
    obstacles: tuple[ObstacleInfo, ...]
    path: PathInfo | None = None


class ForecastInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """What a migration costs: times in ms, bytes, rounds; up to where it gets no further, if it does not converge."""

    converges: bool
    in_time: bool
    total_time: int
    transferred: int
    rounds: int
    downtime: int
    cpu_throttle_percentage: int

    @classmethod
    def of(cls, forecast: Forecast) -> ForecastInfo:
        """As QMP has it."""
        total, downtime = round(forecast.total_s * 1e3), round(forecast.downtime_s * 1e3)
        return cls(
            forecast.converges,
            forecast.in_time,
            total,
            forecast.transferred,
            forecast.rounds,
            downtime,
            forecast.throttle,
        )


class RemedyInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """A control with the least value that makes it converge, and in time: ms, per cent, channels, or bytes a second."""

    control: Control
    value: int
    forecast: ForecastInfo


class PlanInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """What was measured, what the migration gets of the way (bytes a second), and what follows.

    `setup_time` and `standstill` (of the downtime, all but the last pages) are in ms, as `on_record` earlier migrations
    took; assumed if those are none.
    """

    path: PathInfo
    bandwidth: float
    content: int
    setup_time: int
    standstill: int
    on_record: int
    dirty_rate: float
    curve: tuple[DirtySample, ...]
    forecast: ForecastInfo
    remedies: tuple[RemedyInfo, ...]


def calc_dirty_rate(guest: Guest, arguments: CalcDirtyRate) -> None:
    """Begin to measure what the guest writes; query-dirty-rate tells how it goes."""
    if arguments.mode is not Mode.DIRTY_BITMAP:
        # Sampling compares hashes of pages, of which most are none of a VMM's business; there is no dirty ring here.
        raise QmpError(f"mode {arguments.mode.value} is not possible with a confidential guest; use dirty-bitmap")
    if arguments.sample_pages is not None:
        raise QmpError("sample-pages is used only in page-sampling mode")
    per_second = 1e3 if arguments.calc_time_unit is TimeUnit.MILLISECOND else 1
    guest.dirty_rate.begin(MachineWrites(guest.machine), arguments.calc_time / per_second)


def query_dirty_rate(guest: Guest, arguments: QueryDirtyRate) -> DirtyRateInfo:
    """DirtyRateInfo."""
    last = guest.dirty_rate.last
    per_second = 1e3 if arguments.calc_time_unit is TimeUnit.MILLISECOND else 1
    rate = last.bytes_per_s
    return DirtyRateInfo(
        status=last.status,
        start_time=last.began,
        calc_time=int(last.seconds * per_second),
        calc_time_unit=arguments.calc_time_unit,
        sample_pages=0,
        mode=Mode.DIRTY_BITMAP,
        dirty_rate=None if rate is None else round(rate / _MIB),
        x_sealift_curve=_curve(last.samples),
    )


def preflight(guest: Guest, arguments: ToTarget) -> PreflightInfo:
    """Ask the target, which stays as it was, and everybody else."""
    findings = guest.preflight(arguments.uri, arguments.apply)
    obstacles = tuple(
        ObstacleInfo(found.code.value, "blocker" if found.blocks else "warning", found.sentence)
        for found in findings.obstacles
    )
    return PreflightInfo(findings.possible, obstacles, None if findings.path is None else PathInfo.of(findings.path))


def plan(guest: Guest, arguments: PlanArguments) -> PlanInfo:
    """Measure guest and way, and predict."""
    endless = Wishes().within_s
    within = endless if arguments.within is None else arguments.within
    made = guest.plan(arguments.uri, Wishes(arguments.downtime_limit, within, arguments.calc_time), arguments.apply)
    return PlanInfo(
        path=PathInfo.of(made.path),
        bandwidth=made.conditions.running_bytes_per_s,
        content=made.content,
        setup_time=round(made.conditions.setup_s * 1e3),
        standstill=round(made.conditions.standstill_s * 1e3),
        on_record=0 if made.experience is None else made.experience.migrations,
        dirty_rate=made.measured.bytes_per_s or 0.0,
        curve=_curve(made.measured.samples),
        forecast=ForecastInfo.of(made.forecast),
        remedies=tuple(
            RemedyInfo(remedy.control, remedy.value, ForecastInfo.of(remedy.forecast)) for remedy in made.remedies
        ),
    )


def _curve(samples: tuple[Sample, ...]) -> tuple[DirtySample, ...]:
    return tuple(DirtySample(sample.seconds, sample.private_pages, sample.shared_pages) for sample in samples)


COMMANDS = (
    Command("calc-dirty-rate", CalcDirtyRate, calc_dirty_rate),
    Command("query-dirty-rate", QueryDirtyRate, query_dirty_rate),
    Command("x-sealift-preflight", ToTarget, preflight, Runs.AT_LEISURE),
    Command("x-sealift-plan", PlanArguments, plan, Runs.AT_LEISURE),
)
