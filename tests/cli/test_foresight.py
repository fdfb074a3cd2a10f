"""``sealift check`` and ``sealift plan`` ask for what the user wants, and say what would make it possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from sealift.cli import qmp_client
from sealift.cli.commands.plan import describe
from sealift.cli.main import sealift
from sealift.vmm.migration.forecast import Control
from sealift.vmm.qmp.commands.foresight import ForecastInfo, PathInfo, PlanInfo, PreflightInfo, RemedyInfo

GOOD = ForecastInfo(True, True, 2000, 64 << 20, 3, 40, 0)  # noqa: FBT003  # as QMP has them
PATH = PathInfo(1e9, 0.001)


def plan(forecast: ForecastInfo, *remedies: RemedyInfo, on_record: int = 0) -> PlanInfo:
    return PlanInfo(PATH, 1e8, 1000, 200, 20, on_record, 1e6, (), forecast, remedies)


class Vmm:
    """A VMM that notes what it is asked."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self, *_: object) -> None:
        self.asked.clear()

    def __enter__(self) -> Vmm:
        return self

    def __exit__(self, *_: object) -> None: ...

    def execute(self, command: str, **arguments: Any) -> object:
        """See QmpClient."""
        self.asked.append((command, arguments))
        answers = {"x-sealift-plan": plan(GOOD), "x-sealift-preflight": PreflightInfo(possible=True, obstacles=())}
        return msgspec.to_builtins(answers[command])


@pytest.mark.parametrize("command", ["check", "plan"])
def test_what_changes_the_answer_is_part_of_the_question(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(qmp_client, "QmpClient", Vmm)
    monkeypatch.chdir(tmp_path)
    options = ("--multifd", "4", "--auto-converge", "--tls-hostname", "b.example", "--parameter", "max-cpu-throttle=60")
    assert sealift.main([command, "a", "file:x", *options], standalone_mode=False) == 0
    ((_, arguments),) = Vmm.asked
    assert arguments["uri"] == f"file:{tmp_path}/x"
    assert arguments["x-sealift-parameters"] == {
        "multifd-channels": 4,
        "tls-hostname": "b.example",
        "max-cpu-throttle": 60,
    }
    assert [each["capability"] for each in arguments["x-sealift-capabilities"]] == ["auto-converge", "multifd"]
    capsys.readouterr()


def test_a_plan_that_suffices_is_said_with_where_its_set_up_is_from() -> None:
    lines = describe(plan(GOOD, on_record=3))
    assert lines[-1] == "the migration converges: 64.0 MiB in 2.00 s and 3 rounds, 40 ms of downtime"
    assert lines[-2].endswith("as in 3 such migrations on record")
    assert "assumed" in describe(plan(GOOD))[-2]


@pytest.mark.parametrize(
    ("control", "value", "said"),
    [
        (Control.DOWNTIME_LIMIT, 320, "a downtime limit of 320 ms (--downtime-limit 320): "),
        (Control.CPU_THROTTLE_INITIAL, 40, "from 40 % on (--auto-converge --parameter cpu-throttle-initial=40): "),
        (Control.MAX_BANDWIDTH, 25_000_000, "25 MB/s for it (--max-bandwidth 25000000): "),
        (Control.MULTIFD_CHANNELS, 4, "4 channels (--multifd 4): "),
        (Control.WAY, 5_000_000, "a way that takes 5.00 MB/s: "),
    ],
)
def test_each_remedy_is_an_option_with_its_value(control: Control, value: int, said: str) -> None:
    bad = ForecastInfo(False, True, 9000, 1 << 20, 9, 900, 50)  # noqa: FBT003
    *_, judgement, remedy = describe(plan(bad, RemedyInfo(control, value, GOOD)))
    assert judgement.startswith("the migration does not converge: it gets no further than ")
    assert judgement.endswith("and 50 % of the guest's time taken from it")
    assert said in remedy
    assert describe(plan(bad))[-1] == "no control alone would do"


def test_a_plan_that_is_only_too_slow_does_not_say_that_it_does_not_converge() -> None:
    late = ForecastInfo(True, False, 9000, 1 << 20, 9, 20, 0)  # noqa: FBT003
    assert describe(plan(late))[-2].startswith("the migration converges, but not in time: ")
