from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sealift.silicon.engines.interface import Engine
from sealift.silicon.engines.kvm.engine import KvmEngine, KvmFactory
from sealift.silicon.engines.kvm.vcpu import catch_kicks
from sealift.silicon.engines.unicorn.engine import UnicornFactory
from sealift.silicon.memory.guest_memory import GuestMemory
from usable_kvm import why_not

from .board import Board, EngineKind
from .hosts import Hosts, hosts_in
from .windows import KEY, LAYOUT, ScriptedGuest


@cache
def _kvm() -> KvmFactory:
    catch_kicks()
    return KvmFactory()


def _release(engine: Engine) -> None:
    """A platform process ends with its guest, and this one has hundreds of them."""
    assert isinstance(engine, KvmEngine)
    engine.close()


UNICORN = EngineKind("unicorn", UnicornFactory, exact=True)
KVM = EngineKind("kvm", _kvm, exact=False, release=_release)

ENGINES = [UNICORN] if why_not() else [UNICORN, pytest.param(KVM, marks=pytest.mark.kvm)]
"""Every engine of the platform that this machine can run; each must pass the whole contract."""


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(LAYOUT, KEY)


@pytest.fixture
def guest(memory: GuestMemory) -> ScriptedGuest:
    return ScriptedGuest(memory)


@pytest.fixture(params=ENGINES, ids=lambda kind: kind.name)
def engine_kind(request: pytest.FixtureRequest) -> EngineKind:
    kind: EngineKind = request.param
    return kind


@pytest.fixture
def make_board(engine_kind: EngineKind) -> Iterator[Callable[[int], Board]]:
    """A guest with so many vCPUs."""
    with ExitStack() as ending:

        def make(vcpus: int) -> Board:
            board = Board(engine_kind, vcpus)
            ending.callback(board.close)
            return board

        yield make


@pytest.fixture
def board_with(engine_kind: EngineKind) -> Iterator[Callable[..., Board]]:
    """A guest with one vCPU, made as `Board`'s keywords say."""
    with ExitStack() as ending:

        def make(**kwargs: Any) -> Board:
            board = Board(engine_kind, **kwargs)
            ending.callback(board.close)
            return board

        yield make


@pytest.fixture
def board(make_board: Callable[[int], Board]) -> Board:
    """A guest with one vCPU."""
    return make_board(1)


@pytest.fixture
def pair(make_board: Callable[[int], Board]) -> Board:
    """A guest with two vCPUs."""
    return make_board(2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for vCPUs; a test must have ended what runs in them."""
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, looking again and again and letting other threads run; fail after 20 s."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0)

    return wait


@pytest.fixture(scope="session")
def host_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hosts keep their identities; making the manufacturer's keys takes a second."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture
def hosts(host_path: Path) -> Iterator[Hosts]:
    """Platform processes, which end with the test."""
    with hosts_in(host_path) as made:
        yield made
