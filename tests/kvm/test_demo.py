"""The demonstration with an unmodified Linux, as its users run it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness import Sealift
from sealift.cli.linux.image import DEFAULT_SERIES, SERIES
from sealift.wire.handover import Method

LIMIT_S = 850
"""In the rig everything takes about 20 times as long."""


@pytest.mark.timeout(LIMIT_S + 40)
@pytest.mark.parametrize(
    ("series", "method"), [*((series, Method.MH) for series in SERIES), (DEFAULT_SERIES, Method.PSP)]
)
def test_linux_moves_alive_and_loses_nothing(sealift: Callable[..., Sealift], series: str, method: Method) -> None:
    demo = sealift("demo", "--linux", "--series", series, "--method", method.value, "--json")
    assert demo.process.wait(LIMIT_S) == 0
    report = json.loads(demo.stdout.finish().splitlines()[-1])
    assert report["ok"] is True
    assert report["engine"] == "kvm"
    assert report["launch"]["measurement_verified"] is True
    assert report["migration"]["status"] == "completed"
    assert report["migration"]["method"] == method.value
    assert report["guest"]["kernel"].startswith(f"{series}.")
    assert "AMD SEV" in report["guest"]["memory_encryption_line"]
    assert report["guest"]["vcpus"] == 2
    assert report["guest"]["counter_after"] > report["guest"]["counter_before"] > 0
    assert report["guest"]["disk_after"] > report["guest"]["disk_before"] > 0
    assert report["guest"]["faults"] == 0
    assert report["secrecy"]["searched"] == report["secrecy"]["control_found"]
    assert "disk" in report["secrecy"]["searched"]
    assert report["secrecy"]["found"] == []
