"""human-monitor-command, and the human monitor's commands: those of QEMU's that make sense for these guests."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import Annotated, Final, TypeVar

import msgspec

from sealift.errors import UserError
from sealift.vmm.debug.cpu import read_cpu
from sealift.vmm.events import ShutdownCause
from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Capability
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.qmp.commands import human_look, human_memory
from sealift.vmm.qmp.commands.control import version_info
from sealift.vmm.qmp.commands.machine import query_cpus_fast, query_memory
from sealift.vmm.qmp.commands.migration_parameters import MigrationParameters
from sealift.vmm.qmp.human import Call, HumanCommand, HumanMonitor, Viewpoint
from sealift.vmm.qmp.message import QmpError, convert_arguments
from sealift.vmm.qmp.table import Command, NoArguments, Runs
from sealift.vmm.registers import register_lines
from sealift.vmm.runstate import RunState

E = TypeVar("E", bound=enum.Enum)

_SIZE: Final = re.compile(r"(\d+)([BKMG]?)\Z", re.IGNORECASE)
_UNITS: Final = {"B": 1, "K": 1 << 10, "": 1 << 20, "M": 1 << 20, "G": 1 << 30}
"""A rate without a unit is in MiB/s, as in QEMU's monitor."""


class HumanMonitorArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A line, and the vCPU that it looks at (at first 0)."""

    command_line: str
    cpu_index: Annotated[int, msgspec.Meta(ge=0)] | None = None


def human_monitor_command(guest: Guest, arguments: HumanMonitorArguments) -> str:
    """What the monitor shows."""
    cpu = arguments.cpu_index or 0
    if cpu and cpu >= guest.machine.vcpu_count:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return MONITOR.execute(guest, arguments.command_line, Viewpoint(cpu))


# --- info ---------------------------------------------------------------------------------------------------------


def _info_status(call: Call) -> Iterator[str]:
    state = call.guest.state
    running = state is RunState.RUNNING
    why = "" if state in {RunState.RUNNING, RunState.PAUSED} else f" ({state.value})"
    yield f"VM status: {'running' if running else 'paused'}{why}"


def _info_name(call: Call) -> Iterator[str]:
    yield call.guest.name


def _info_version(_: Call) -> Iterator[str]:
    version = version_info()
    yield f"{version.qemu.major}.{version.qemu.minor}.{version.qemu.micro} ({version.package})"


def _info_cpus(call: Call) -> Iterator[str]:
    for cpu in query_cpus_fast(call.guest, NoArguments()):
        mark = "*" if cpu.cpu_index == call.cpu else " "
        yield f"{mark} CPU #{cpu.cpu_index}: thread_id={cpu.thread_id}"


def _info_memory(call: Call) -> Iterator[str]:
    memory = query_memory(call.guest, NoArguments())
    yield f"base memory: {memory.base_memory}"
    yield f"plugged memory: {memory.plugged_memory}"


def _info_registers(call: Call) -> Iterator[str]:
    """Of an SEV-ES guest those of the decrypted VMSA, as far as the policy allows."""
    with call.guest.machine.stilled():
        registers = read_cpu(call.guest.machine, call.cpu).registers
    yield f"CPU#{call.cpu}"
    yield from register_lines(registers)


def _info_migrate(call: Call) -> Iterator[str]:
    info = call.guest.migration() or MigrationInfo()
    for reason in call.guest.blocked_reasons():
        yield f"Outgoing migration blocked: {reason}"
    if info == MigrationInfo():
        return
    yield f"Migration status: {info.status}" + (f" ({info.error_desc})" if info.error_desc else "")
    yield f"total time: {info.total_time} ms"
    times = (("expected downtime", info.expected_downtime), ("downtime", info.downtime), ("setup", info.setup_time))
    for name, value in times:
        if value is not None:
            yield f"{name}: {value} ms"
    for address in info.socket_address:
        where = address.path if address.host is None else f"{address.host}:{address.port}"
        yield f"socket address: {address.type.value}:{where}"
    yield from _ram_lines(info)


def _ram_lines(info: MigrationInfo) -> Iterator[str]:
    ram = info.ram
    if ram is None:
        return
    yield f"transferred ram: {ram.transferred >> 10} kbytes"
    yield f"throughput: {ram.mbps:.2f} mbps"
    yield f"remaining ram: {ram.remaining >> 10} kbytes"
    yield f"total ram: {ram.total >> 10} kbytes"
    yield f"duplicate: {ram.duplicate} pages"
    yield f"normal: {ram.normal} pages"
    yield f"normal bytes: {ram.normal_bytes >> 10} kbytes"
    yield f"dirty sync count: {ram.dirty_sync_count}"
    yield f"page size: {ram.page_size >> 10} kbytes"
    yield f"pages-per-second: {ram.pages_per_second}"


def _info_parameters(call: Call) -> Iterator[str]:
    shown = msgspec.to_builtins(MigrationParameters.of(call.guest.parameters))
    for name, value in shown.items():
        yield f"{name}: {value}"


def _info_capabilities(call: Call) -> Iterator[str]:
    on = call.guest.parameters.capabilities
    for capability in Capability:
        yield f"{capability.value}: {'on' if capability in on else 'off'}"


# --- what changes something -----------------------------------------------------------------------------------------


def _stop(call: Call) -> Iterator[str]:
    call.guest.stop()
    yield from ()


def _cont(call: Call) -> Iterator[str]:
    call.guest.resume()
    yield from ()


def _choose_cpu(call: Call) -> Iterator[str]:
    """For as long as this user stays: human-monitor-command and gdb name theirs with each line."""
    index = call.words["index"]
    if not index.isdecimal() or int(index) >= call.guest.machine.vcpu_count:
        raise UserError("invalid CPU index")
    call.view.cpu = int(index)
    yield from ()


def _system_reset(call: Call) -> Iterator[str]:
    raise UserError(
        f"guest {call.guest.name} cannot be reset; quit, and run it again: that is another launch, which its owner "
        "attests anew"
    )


def _gdbserver(call: Call) -> Iterator[str]:
    device = call.words.get("device", "tcp::1234")
    debugging = call.guest.debugging
    if debugging is None:
        raise UserError("gdb is not served for this guest")
    if device == "none":
        debugging.end()
        yield "Disabled gdbserver"
    else:
        yield f"Waiting for gdb connection on device '{debugging.serve_at(device)}'"


def _quit(call: Call) -> Iterator[str]:
    call.guest.end(ShutdownCause.HOST_QMP_QUIT)
    yield from ()


def _power_down(call: Call) -> Iterator[str]:
    call.guest.power_down()
    yield from ()


def _migrate(call: Call) -> Iterator[str]:
    """With and without -d it goes on by itself: a monitor that blocks would block its client."""
    call.guest.migrate(call.words["uri"])
    yield from ()


def _migrate_incoming(call: Call) -> Iterator[str]:
    call.guest.receive(call.words["uri"])
    yield from ()


def _migrate_cancel(call: Call) -> Iterator[str]:
    call.guest.cancel_migration()
    yield from ()


def _migrate_continue(call: Call) -> Iterator[str]:
    call.guest.continue_migration(_one_of(MigrationStatus, call.words["state"], "state"))
    yield from ()


def _set_parameter(call: Call) -> Iterator[str]:
    name, text = call.words["parameter"], call.words["value"]
    value: object = _rate(text) if name == "max-bandwidth" else int(text) if text.isdecimal() else text
    call.guest.adjust(convert_arguments({name: value}, MigrationParameters).apply)
    yield from ()


def _rate(text: str) -> int:
    match = _SIZE.match(text)
    if match is None:
        raise UserError(f"{text!r} is no rate; write a number of MiB/s, or one with B, K, M or G")
    return int(match[1]) * _UNITS[match[2].upper()]


def _set_capability(call: Call) -> Iterator[str]:
    capability, state = _one_of(Capability, call.words["capability"], "capability"), call.words["state"]
    if state not in {"on", "off"}:
        raise UserError("Parameter 'state' expects 'on' or 'off'")
    call.guest.switch({capability: state == "on"})
    yield from ()


def _one_of(kind: type[E], text: str, parameter: str) -> E:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"Parameter '{parameter}' does not accept value '{text}'") from None


INFO: Final = (
    HumanCommand(("status",), (), "show the current VM status", _info_status),
    HumanCommand(("name",), (), "show the current VM name", _info_name),
    HumanCommand(("version",), (), "show the version of the interface, and of Sealift", _info_version),
    HumanCommand(("cpus",), (), "show infos for each CPU", _info_cpus),
    HumanCommand(("memory_size_summary",), (), "show the amount of memory in bytes", _info_memory),
    HumanCommand(("registers",), (), "show the cpu registers", _info_registers),
    HumanCommand(("migrate",), (), "show migration status", _info_migrate),
    HumanCommand(("migrate_parameters",), (), "show current migration parameters", _info_parameters),
    HumanCommand(("migrate_capabilities",), (), "show current migration capabilities", _info_capabilities),
)

ACTIONS: Final = (
    HumanCommand(("stop", "s"), (), "stop emulation", _stop),
    HumanCommand(("cont", "c"), (), "resume emulation", _cont),
    HumanCommand(("cpu",), ("index",), "set the default CPU", _choose_cpu),
    HumanCommand(
        ("gdbserver",),
        ("[device]",),
        "start gdbserver on given device (default 'tcp::1234'), stop with 'none'",
        _gdbserver,
    ),
    HumanCommand(("quit", "q"), (), "end the VMM", _quit),
    HumanCommand(("system_reset",), (), "refused: a guest is launched and attested anew", _system_reset),
    HumanCommand(("system_powerdown",), (), "send system power down event", _power_down),
    HumanCommand(("migrate",), ("[-d]", "uri"), "migrate to URI, in the background", _migrate),
    HumanCommand(
        ("migrate_incoming",), ("uri",), "continue an incoming migration from --incoming defer", _migrate_incoming
    ),
    HumanCommand(("migrate_cancel",), (), "cancel the current VM migration", _migrate_cancel),
    HumanCommand(
        ("migrate_continue",), ("state",), "continue a migration from the given paused state", _migrate_continue
    ),
    HumanCommand(("migrate_set_parameter",), ("parameter", "value"), "set the parameter for migration", _set_parameter),
    HumanCommand(
        ("migrate_set_capability",), ("capability", "state"), "switch a capability on or off", _set_capability
    ),
)

MONITOR: Final = HumanMonitor(
    (*ACTIONS, *human_memory.ACTIONS, *human_look.ACTIONS), {"info": (*INFO, *human_memory.INFO, *human_look.INFO)}
)
"""Every command of the human monitor there is."""

COMMANDS: Final = (Command("human-monitor-command", HumanMonitorArguments, human_monitor_command, Runs.IN_THREAD),)
