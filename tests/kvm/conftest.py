"""These tests need a /dev/kvm that works; ``make test-kvm`` runs them in the rig where the machine has none."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@functools.cache
def why_not() -> str:
    """Why KVM is of no use here; empty if it is."""
    check = [sys.executable, "-m", "sealift.cli", "check", "kvm"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    words = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else words[-1] if words else f"exit status {done.returncode}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--needs-kvm``: for runs that are of no use without it."""
    parser.addoption("--needs-kvm", action="store_true", help="fail where KVM is not usable, instead of skipping")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run, loudly: the reason is in the summary of every run."""
    for item in items:
        if HERE in item.path.parents and (reason := why_not()):
            if config.getoption("--needs-kvm", default=False):
                raise pytest.UsageError(f"NOTHING TESTED, KVM is not usable here: {reason}")
            item.add_marker(pytest.mark.skip(reason=f"NOT TESTED, needs KVM (make test-kvm has it): {reason}"))
