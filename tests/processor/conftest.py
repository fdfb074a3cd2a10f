from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity

from .bench import Bench, make_bench
from .memory import Memory


@pytest.fixture(scope="session")
def manufacturer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One manufacturer for all tests: its keys take a second to make."""
    return tmp_path_factory.mktemp("silicon") / "manufacturer"


@pytest.fixture(scope="session")
def host_path(tmp_path_factory: pytest.TempPathFactory, manufacturer_path: Path) -> Path:
    """A host that tests share: its chip stays, its platform keys may change."""
    path = tmp_path_factory.mktemp("host") / "identity"
    PlatformIdentity(path, manufacturer_path)
    return path


@pytest.fixture
def identity(host_path: Path, manufacturer_path: Path) -> PlatformIdentity:
    return PlatformIdentity(host_path, manufacturer_path)


@pytest.fixture
def processor(identity: PlatformIdentity) -> Iterator[SecureProcessor]:
    made = SecureProcessor(identity)
    made.init()
    yield made
    made.close()


@pytest.fixture
def memory() -> Memory:
    return Memory(bytearray(b"content of the launch image, page by page".ljust(4096, b".") * 4))


@pytest.fixture(scope="session")
def target_path(tmp_path_factory: pytest.TempPathFactory, manufacturer_path: Path) -> Path:
    """Another host, with a chip of the same manufacturer."""
    path = tmp_path_factory.mktemp("target") / "identity"
    PlatformIdentity(path, manufacturer_path)
    return path


@pytest.fixture
def target(target_path: Path, manufacturer_path: Path) -> Iterator[SecureProcessor]:
    made = SecureProcessor(PlatformIdentity(target_path, manufacturer_path))
    made.init(INIT_ES)
    made.pek_gen()
    yield made
    made.close()


@pytest.fixture
def make(identity: PlatformIdentity, target: SecureProcessor) -> Iterator[Callable[[], Bench]]:
    """Makes one bench after the other, each on the same host."""
    made: list[Bench] = []

    def bench() -> Bench:
        while made:
            made.pop().clear()
        processor = SecureProcessor(identity)
        processor.init(INIT_ES)
        if processor.platform_status().owned:
            processor.pek_gen()
        made.append(make_bench(processor, target))
        return made[-1]

    yield bench
    while made:
        made.pop().clear()
