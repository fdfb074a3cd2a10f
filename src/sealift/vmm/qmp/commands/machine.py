"""qapi/machine.json: name, vCPUs, memory; and of our own, the processes behind the guest."""

from __future__ import annotations

import enum
import os

import msgspec

from sealift.vmm.guest import Guest
from sealift.vmm.qmp.table import Command, NoArguments, Runs


class NameInfo(msgspec.Struct, frozen=True):
    """QEMU's NameInfo."""

    name: str


class CpuProperties(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's CpuInstanceProperties: where in the (flat) topology."""

    core_id: int
    thread_id: int = 0
    socket_id: int = 0


class SysEmuTarget(enum.StrEnum):
    """QEMU's SysEmuTarget, as far as it exists here."""

    X86_64 = "x86_64"


class CpuInfoFast(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's CpuInfoFast; `thread_id` is the VMM's thread that runs the vCPU."""

    cpu_index: int
    qom_path: str
    thread_id: int
    props: CpuProperties
    target: SysEmuTarget = SysEmuTarget.X86_64


class MemoryInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """QEMU's MemoryInfo, in bytes; no memory is ever plugged later."""

    base_memory: int
    plugged_memory: int = 0


class ProcessInfo(msgspec.Struct, frozen=True, rename="kebab"):
    """The pair of processes that a guest is made of; `engine` runs its vCPUs in the platform process."""

    pid: int
    platform_pid: int
    engine: str


def query_name(guest: Guest, _: NoArguments) -> NameInfo:
    """NameInfo."""
    return NameInfo(guest.name)


def query_cpus_fast(guest: Guest, _: NoArguments) -> list[CpuInfoFast]:
    """CpuInfoFast of every vCPU; asks no vCPU, so it never disturbs the guest."""
    return [
        CpuInfoFast(index, f"/machine/cpu[{index}]", thread_id, CpuProperties(index))
        for index, thread_id in enumerate(guest.machine.vcpus.thread_ids)
    ]


def query_memory(guest: Guest, _: NoArguments) -> MemoryInfo:
    """MemoryInfo."""
    return MemoryInfo(guest.machine.layout.size)


def query_processes(guest: Guest, _: NoArguments) -> ProcessInfo:
    """ProcessInfo."""
    platform = guest.machine.platform
    return ProcessInfo(os.getpid(), platform.pid, platform.info().engine)


COMMANDS = (
    Command("query-name", NoArguments, query_name),
    Command("query-cpus-fast", NoArguments, query_cpus_fast),
    Command("query-memory-size-summary", NoArguments, query_memory),
    Command("x-sealift-query-processes", NoArguments, query_processes, Runs.IN_THREAD),
)
