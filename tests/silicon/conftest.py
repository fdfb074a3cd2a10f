from __future__ import annotations

import pytest

from sealift.silicon.memory.guest_memory import GuestMemory

from .windows import KEY, LAYOUT, ScriptedGuest


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(LAYOUT, KEY)


@pytest.fixture
def guest(memory: GuestMemory) -> ScriptedGuest:
    return ScriptedGuest(memory)
