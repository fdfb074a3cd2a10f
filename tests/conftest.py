"""Fixtures for whole guests. When a test fails, what its guests printed and went through is shown with it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from harness import Sealift
from pages import Shell, install, open_shell
from sealift.cli.guest_options import GuestOptions
from sealift.cli.places import Host, Places, default_host, default_manufacturer, default_owner, state_directory
from sealift.cli.wiring import HostedGuest, start_guest
from sealift.silicon.processor.manufacturer import Manufacturer

# A shell's background jobs ignore Ctrl-C, and so would all that is started from one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is timed: a machine under load is no failure, and pytest-timeout ends what hangs.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

FEW_DESCRIPTORS = 30
"""What a module may leave open: fixtures of the session that it is the first to use."""

LOGS = pytest.StashKey[list[tuple[str, Callable[[], str]]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the guests of a failed test have to say."""
    report = yield
    if report.failed:
        report.sections += [(title, read()) for title, read in item.stash.get(LOGS, [])]
    return report


@pytest.fixture(autouse=True, scope="module")
def no_descriptors_are_left() -> Iterator[None]:
    """What a module's tests opened is closed behind them, or goes with what owned it; some lie in cycles."""
    before = _open_descriptors()
    yield
    if _open_descriptors() > before + FEW_DESCRIPTORS:
        gc.collect()
        assert _open_descriptors() <= before + FEW_DESCRIPTORS, "the tests of this module leave descriptors behind"


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> list[tuple[str, Callable[[], str]]]:
    """What to show if the test fails: titles, and functions that read."""
    return request.node.stash.setdefault(LOGS, [])  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def manufacturer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manufacturer's directory; its 4096-bit keys are made once a session, since that takes seconds."""
    path = tmp_path_factory.mktemp("session") / "manufacturer"
    Manufacturer(path)
    return path


@pytest.fixture
def state_dir(tmp_path: Path, manufacturer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory of a user, here and for child processes, with the session's manufacturer."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    state_directory().mkdir(parents=True)
    shutil.copytree(manufacturer, default_manufacturer())
    return state_directory()


@pytest.fixture
def places(state_dir: Path) -> Places:  # noqa: ARG001  # what the defaults stand on
    """The user's default host and owner."""
    return Places(default_host(), default_owner(), default_manufacturer())


@pytest.fixture
def other_host(state_dir: Path) -> Host:
    """Another host of the same user."""
    return Host(state_dir / "hosts" / "other")


@pytest.fixture
def guest(places: Places, logs: list[tuple[str, Callable[[], str]]]) -> Iterator[Callable[..., HostedGuest]]:
    """Starts guests in this process: ``guest(kernel="ledger")``, with any of `GuestOptions`; ends them all."""
    started: list[HostedGuest] = []

    def start(at: Places = places, **options: Any) -> HostedGuest:
        hosted = start_guest(replace(GuestOptions(kernel="idle", memory=16 << 20), **options), at)
        started.append(hosted)
        events: list[str] = []
        hosted.guest.events.listen(lambda event: events.append(str(event)))
        logs.append((f"console of {hosted.guest.name}", lambda: "\n".join(hosted.guest.console.tail(40))))
        logs.append((f"events of {hosted.guest.name}", lambda: "\n".join(events)))
        return hosted

    yield start
    for hosted in started:
        hosted.close()


@pytest.fixture
def sealift(
    state_dir: Path,  # noqa: ARG001  # what the processes stand on
    logs: list[tuple[str, Callable[[], str]]],
) -> Iterator[Callable[..., Sealift]]:
    """Starts ``sealift`` processes: ``sealift("run", "--name", "a")``; ends them all."""
    started: list[Sealift] = []

    def start(*arguments: str | Path, **options: Any) -> Sealift:
        process = Sealift(*arguments, **options)
        started.append(process)
        logs.append((f"sealift {' '.join(process.arguments)}", process.report))
        return process

    yield start
    for process in started:
        process.close()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in the test's own directory, which finds the ``sealift`` under test."""
    tool = install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with open_shell() as run:
        yield run
