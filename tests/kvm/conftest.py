"""These tests need a /dev/kvm that works; ``make test-kvm`` runs them in the rig where the machine has none.

Others that need it, such as the engine contract on the KVM engine, are marked ``kvm`` and exist only where it works.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from usable_kvm import why_not

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--needs-kvm``: for runs that are of no use without it."""
    parser.addoption("--needs-kvm", action="store_true", help="fail where KVM is not usable, instead of skipping")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run, loudly: the reason is in the summary of every run."""
    reason = why_not()
    if reason and config.getoption("--needs-kvm", default=False):
        raise pytest.UsageError(f"NOTHING TESTED, KVM is not usable here: {reason}")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kvm)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"NOT TESTED, needs KVM (make test-kvm has it): {reason}"))
