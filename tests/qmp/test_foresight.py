"""Dirty rate, preflight and plan over QMP, asked by QEMU's own client library."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from harness import PATIENCE_S

from .conftest import Served
from .test_server import ask


def measured(served: Served, **arguments: object) -> Any:
    """DirtyRateInfo once it is measured."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        info = ask(served, "query-dirty-rate", **arguments)
        if info["status"] == "measured":
            return info
        time.sleep(0.05)
    raise AssertionError(info)


def test_a_dirty_rate_is_asked_for_and_told_in_qemus_words(served: Served) -> None:
    assert ask(served, "query-dirty-rate")["status"] == "unstarted"
    assert ask(served, "calc-dirty-rate", calc_time=200, calc_time_unit="millisecond", mode="dirty-bitmap") == {}
    with pytest.raises(ExecuteError, match="already being measured"):
        ask(served, "calc-dirty-rate", calc_time=1)
    info = measured(served, calc_time_unit="millisecond")
    curve = info.pop("x-sealift-curve")
    assert abs(info.pop("start-time") - time.time()) < PATIENCE_S
    assert info == {
        "status": "measured",
        "dirty-rate": 0,  # an idle guest's
        "calc-time": 200,
        "calc-time-unit": "millisecond",
        "sample-pages": 0,
        "mode": "dirty-bitmap",
    }
    assert len(curve) > 3
    assert [point["time"] for point in curve] == sorted(point["time"] for point in curve)
    assert ask(served, "query-status")["running"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"calc_time": 61}, r"out of range\[50ms, 60000ms\]"),
        ({"calc_time": 1, "mode": "page-sampling"}, "use dirty-bitmap"),
        ({"calc_time": 1, "mode": "dirty-ring"}, "use dirty-bitmap"),
        ({"calc_time": 1, "sample_pages": 512}, "sample-pages is used only in page-sampling mode"),
    ],
)
def test_what_cannot_be_measured_is_refused(served: Served, arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ExecuteError, match=complaint):
        ask(served, "calc-dirty-rate", **arguments)


def test_a_target_that_is_not_there_is_an_obstacle_in_a_preflight_and_an_error_in_a_plan(served: Served) -> None:
    found = ask(served, "x-sealift-preflight", uri="unix:/nobody/is/here")
    assert not found["possible"]
    (obstacle,) = found["obstacles"]
    assert (obstacle["code"], obstacle["severity"]) == ("target-unreachable", "blocker")
    assert "start the target first" in obstacle["reason"]
    with pytest.raises(ExecuteError, match="start the target first"):
        ask(served, "x-sealift-plan", uri="unix:/nobody/is/here")
    with pytest.raises(ExecuteError, match=re.escape("'nowhere' is no migration address")):
        ask(served, "x-sealift-preflight", uri="nowhere")


def test_what_the_guest_itself_has_against_it_comes_with_its_code(served: Served) -> None:
    ask(served, "migrate-set-parameters", x_sealift_method="psp")
    try:
        found = ask(served, "x-sealift-preflight", uri="unix:/nobody/is/here")
    finally:
        ask(served, "migrate-set-parameters", x_sealift_method="mh")
    assert [obstacle["code"] for obstacle in found["obstacles"]] == ["policy-nosend", "target-unreachable"]
