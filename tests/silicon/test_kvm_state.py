"""The order in which a vCPU's state is read from KVM."""

from __future__ import annotations

import ctypes

import pytest

from sealift.silicon.engines.kvm import abi, state


def test_the_run_state_is_asked_for_before_the_registers_it_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fetch(_fd: int, request: int, of: type[ctypes.Structure]) -> ctypes.Structure:
        asked.append(request)
        return of()

    monkeypatch.setattr(state, "fetch", fetch)
    state.VcpuState(-1, b"", (), irqchip=True).save()
    assert asked[0] == abi.GET_MP_STATE
    assert {abi.GET_REGS, abi.GET_SREGS, abi.GET_LAPIC, abi.GET_VCPU_EVENTS} <= set(asked)
