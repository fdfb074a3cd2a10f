"""The QMP server, judged by QEMU's own client library."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from harness import PATIENCE_S, readable
from introspection import judge_command, judge_event
from qmp.conftest import Served
from sealift.errors import RefusedError
from sealift.launch.microvm import PM_EVENT_PORT
from sealift.vmm.devices.acpi_pm import PowerManagement
from sealift.vmm.events import Direction, MigrationChanged
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.outbox import OUTBOX_LIMIT
from sealift.vmm.qmp.commands import COMMANDS
from sealift.wire.obstacle import Code, Obstacle


class JudgingClient(QMPClient):
    """QEMU's own client; what it is answered must be what the schema says."""

    async def execute(self, cmd: str, arguments: Any = None, oob: bool = False) -> Any:  # noqa: FBT001, FBT002  # QEMU's
        """See QMPClient."""
        result = await super().execute(cmd, arguments, oob)
        judge_command(cmd, arguments, result)
        return result


@asynccontextmanager
async def connected(address: str | tuple[str, int] | Path) -> AsyncIterator[QMPClient]:
    client = JudgingClient("test")
    await client.connect(str(address) if isinstance(address, Path) else address)
    try:
        yield client
    finally:
        await client.disconnect()


def talk(path: Path, conversation: Callable[[QMPClient], Awaitable[Any]]) -> Any:
    """One client's conversation with a server."""

    async def run() -> Any:
        async with asyncio.timeout(PATIENCE_S), connected(path) as client:
            return await conversation(client)

    return asyncio.run(run())


async def runs(client: QMPClient) -> bool:
    """Whether the guest runs, as query-status says."""
    status: Any = await client.execute("query-status")
    return bool(status["running"])


async def switch_events(client: QMPClient, *, on: bool) -> None:
    """Let clients be told of migrations."""
    await client.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": on}]})


def ask(served: Served, command: str, **arguments: object) -> Any:
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return talk(served.path, lambda client: client.execute(command, named or None))


def test_the_greeting_names_the_release_whose_interface_this_is(served: Served) -> None:
    async def greeting(client: QMPClient) -> Any:
        assert client.greeting is not None
        return client.greeting.QMP.version

    version = talk(served.path, greeting)
    assert version == ask(served, "query-version")
    assert version["package"].startswith("sealift-")
    assert set(version["qemu"]) == {"major", "minor", "micro"}


def test_every_command_is_listed_once(served: Served) -> None:
    assert [info["name"] for info in ask(served, "query-commands")] == COMMANDS.names()


def test_every_command_that_answers_with_something_answers_what_the_schema_says(served: Served) -> None:
    """`ask` has every answer judged; here are all that a guest at rest gives."""
    arguments = {
        "human-monitor-command": {"command-line": "info status"},
        "query-sev-attestation-report": {"mnonce": b64encode(bytes(16)).decode()},
        "x-sealift-preflight": {"uri": "unix:/nobody/is/here"},
    }
    refused = {"x-sealift-plan", "x-sealift-resume-request"}  # of such a guest; migrations' tests have them
    for command in COMMANDS:
        if command.result is not None and command.name not in refused:
            ask(served, command.name, **arguments.get(command.name, {}))


def test_an_answer_that_the_schema_does_not_know_would_be_noticed() -> None:
    good: dict[str, object] = {"running": True, "status": "running"}
    judge_command("query-status", None, good)
    bads: list[Any] = [{}, good | {"status": "asleep"}, good | {"running": 1}, good | {"pages": 1}, []]
    for bad in bads:
        with pytest.raises(AssertionError, match="query-status's result"):
            judge_command("query-status", None, bad)
    with pytest.raises(AssertionError, match="STOP has why"):
        judge_event({"event": "STOP", "data": {"why": "so"}})


def test_queries_describe_the_guest(served: Served) -> None:
    assert ask(served, "query-name") == {"name": "served"}
    assert ask(served, "query-status") == {"running": True, "status": "running"}
    assert ask(served, "query-memory-size-summary") == {"base-memory": 16 << 20, "plugged-memory": 0}
    assert ask(served, "query-migrate") == {}
    processes = ask(served, "x-sealift-query-processes")
    assert processes["pid"] == os.getpid()
    assert processes["platform-pid"] == served.guest.machine.platform.pid


def test_the_thread_of_each_vcpu_is_a_thread_of_the_vmm(served: Served) -> None:
    cpus = ask(served, "query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
    assert all(Path(f"/proc/self/task/{cpu['thread-id']}").exists() for cpu in cpus)


@pytest.mark.parametrize("opening", ["POST / HTTP/1.1\r\n", "Host: 127.0.0.1\r\n", "[]\n"])
def test_a_web_page_cannot_have_a_browser_control_the_guest(served: Served, opening: str) -> None:
    request = opening + 'Content-Type: text/plain\r\n\r\n{"execute": "qmp_capabilities"}\n{"execute": "stop"}\n'
    with socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as sock, sock.makefile("rb") as file:
        sock.sendall(request.encode())
        greeting, error, *rest = file.readlines()
    assert b'"QMP"' in greeting
    assert b'"GenericError"' in error
    assert rest == []
    assert talk(served.path, runs)


def test_stop_and_cont_are_answered_when_done_and_told_to_every_client(served: Served) -> None:
    async def conversation() -> list[list[str]]:
        async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
            kinds = ("unix", "tcp", "unix", "tcp")
            clients = [await stack.enter_async_context(connected(served.address(kind))) for kind in kinds]
            listeners = [stack.enter_context(client.listener()) for client in clients]
            for command, running in (("stop", False), ("stop", False), ("cont", True), ("cont", True)):
                await clients[0].execute(command)
                assert await runs(clients[1]) is running
            return [[str((await listener.get())["event"]) for _ in range(2)] for listener in listeners]

    assert asyncio.run(conversation()) == [["STOP", "RESUME"]] * 4


@pytest.mark.parametrize(
    ("command", "arguments", "error_class", "description"),
    [
        ("no-such-command", None, "CommandNotFound", "The command no-such-command has not been found"),
        ("migrate", None, "GenericError", "need either 'uri' or 'channels' argument"),
        ("migrate", {"uri": "unix:x", "resume": True}, "GenericError", "Cannot resume if there is no paused migration"),
        ("migrate-incoming", {"uri": "unix:x"}, "GenericError", "defer' was not specified on the command line"),
        ("system_powerdown", None, "GenericError", "has no power button"),
        (
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "postcopy-ram", "state": True}]},
            "GenericError",
            "Parameter 'capability' does not accept value 'postcopy-ram'",
        ),
        (
            "sev-inject-launch-secret",
            {"packet-header": "", "secret": "", "gpa": -1},
            "GenericError",
            "Parameter 'gpa' expects an integer >= 0",
        ),
        ("migrate", {"uri": 7}, "GenericError", "Invalid parameter type for 'uri', expected: string"),
        ("migrate", {"uri": "x", "speed": 1}, "GenericError", "Parameter 'speed' is unexpected"),
        ("query-status", {"now": True}, "GenericError", "Parameter 'now' is unexpected"),
        ("migrate", {"uri": "carrier-pigeon"}, "GenericError", "is no migration address"),
        ("qmp_capabilities", None, "CommandNotFound", "already complete"),
        (
            "migrate-set-parameters",
            {"downtime-limit": "soon"},
            "GenericError",
            "Invalid parameter type for 'downtime-limit', expected: integer",
        ),
    ],
)
def test_mistakes_are_answered_with_qemus_classes_and_words(
    served: Served, command: str, arguments: dict[str, object] | None, error_class: str, description: str
) -> None:
    with pytest.raises(ExecuteError) as caught:
        talk(served.path, lambda client: client.execute(command, arguments))
    assert caught.value.error_class == error_class
    assert description in str(caught.value)


def test_parameters_are_kept_and_a_refused_change_changes_nothing(served: Served) -> None:
    ask(served, "migrate-set-parameters", downtime_limit=120, max_bandwidth=1 << 20, x_sealift_transfer="mailbox")
    before = ask(served, "query-migrate-parameters")
    assert (before["downtime-limit"], before["max-bandwidth"], before["x-sealift-transfer"]) == (
        120,
        1 << 20,
        "mailbox",
    )
    with pytest.raises(ExecuteError, match="downtime limit"):
        ask(served, "migrate-set-parameters", max_bandwidth=1, downtime_limit=-1)
    assert ask(served, "query-migrate-parameters") == before


def test_a_migration_to_nowhere_fails_with_the_reason_and_the_guest_runs_on(served: Served, tmp_path: Path) -> None:
    async def conversation(client: QMPClient) -> Any:
        await switch_events(client, on=True)
        with client.listener(names=("MIGRATION",)) as listener:
            await client.execute("migrate", {"uri": f"unix:{tmp_path}/nobody"})
            statuses = await _statuses_until(listener, "failed")
            return statuses, await client.execute("query-migrate"), await client.execute("query-status")

    statuses, info, status = talk(served.path, conversation)
    assert statuses == ["setup", "failed"]
    assert "nobody listens" in info["error-desc"]
    assert status["running"]


def test_migrations_are_told_only_to_those_who_switched_that_on(served: Served, tmp_path: Path) -> None:
    async def conversation(client: QMPClient) -> list[str]:
        await switch_events(client, on=False)
        with client.listener() as listener:
            await client.execute("migrate", {"uri": f"unix:{tmp_path}/nobody"})
            while (await status_of(client)) != "failed":
                pass
            await client.execute("stop")
            await client.execute("cont")
            return [str((await listener.get())["event"]) for _ in range(2)]

    assert talk(served.path, conversation) == ["STOP", "RESUME"]


def test_capabilities_are_kept_one_by_one(served: Served) -> None:
    for state in (True, False):
        ask(served, "migrate-set-capabilities", capabilities=[{"capability": "events", "state": state}])
        assert {"capability": "events", "state": state} in ask(served, "query-migrate-capabilities")


def test_the_migration_handler_answers(served: Served) -> None:
    assert ask(served, "start-migration-handler") == {}


def test_a_guest_without_migration_handler_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise RefusedError("the guest has no migration handler")

    monkeypatch.setattr(served.guest.machine.platform, "open_handler", none)
    with pytest.raises(ExecuteError, match="has no migration handler"):
        ask(served, "start-migration-handler")


def test_the_power_button_reaches_the_guest_and_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[bool] = []
    power = PowerManagement(lambda: None, lambda: pressed.append(True))
    power.write(PM_EVENT_PORT + 2, 2, 1 << 8)
    monkeypatch.setattr(served.guest.machine.devices, "power", power)

    async def conversation(client: QMPClient) -> str:
        with client.listener(names=("POWERDOWN",)) as listener:
            await client.execute("system_powerdown")
            return str((await listener.get())["event"])

    assert talk(served.path, conversation) == "POWERDOWN"
    assert pressed
    assert power.read(PM_EVENT_PORT, 2) == 1 << 8


def test_what_blocks_every_migration_is_told_as_qemu_does_and_refuses_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = ("it has no handler", "it does not say that it can be migrated")
    before = ask(served, "query-migrate")
    assert "blocked-reasons" not in before
    status = served.guest.machine.platform.status()
    obstacles = (Obstacle(Code.NO_HANDLER, reasons[0]), Obstacle(Code.NOT_READY, reasons[1]))
    blocked = msgspec.structs.replace(status, blocked=obstacles)
    monkeypatch.setattr(served.guest.machine.platform, "status", lambda: blocked)
    assert ask(served, "query-migrate") == before | {"blocked-reasons": list(reasons)}
    with pytest.raises(ExecuteError, match=f"^guest served cannot be migrated: {'; and '.join(reasons)}$"):
        ask(served, "migrate", uri="unix:/nobody/is/asked")
    assert ask(served, "query-status")["running"]


def test_quit_is_answered_before_the_shutdown_is_announced(served: Served) -> None:
    async def conversation(client: QMPClient) -> Any:
        with client.listener(names=("SHUTDOWN",)) as listener:
            assert await client.execute("quit") == {}
            return (await listener.get())["data"]

    assert talk(served.path, conversation) == {"guest": False, "reason": "host-qmp-quit"}


def test_a_command_that_waits_keeps_no_other_client_waiting(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping, may_stop = threading.Event(), threading.Event()

    def slow_stop() -> None:
        stopping.set()
        may_stop.wait(PATIENCE_S)

    monkeypatch.setattr(served.guest, "stop", slow_stop)

    async def conversation() -> None:
        async with asyncio.timeout(PATIENCE_S), connected(served.path) as patient, connected(served.path) as other:
            waiting = asyncio.create_task(patient.execute("stop"))
            await asyncio.to_thread(stopping.wait, PATIENCE_S)
            assert await runs(other)
            assert not waiting.done()
            may_stop.set()
            await waiting

    asyncio.run(conversation())


def test_however_many_ask_a_silent_target_the_guest_can_be_stopped(served: Served, tmp_path: Path) -> None:
    many = 20

    async def conversation(silent: socket.socket) -> None:
        async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as clients, connected(served.path) as other:
            asking = [await clients.enter_async_context(connected(served.path)) for _ in range(many)]
            uri = {"uri": f"unix:{silent.getsockname()}"}
            waiting = [asyncio.create_task(client.execute("x-sealift-preflight", uri)) for client in asking]
            await asyncio.to_thread(readable, silent.fileno(), PATIENCE_S)
            await other.execute("stop")
            assert not await runs(other)
            await other.execute("cont")
            assert not any(task.done() for task in waiting)
            silent.close()
            answers: list[Any] = await asyncio.gather(*waiting)
            assert not any(answer["possible"] for answer in answers)

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen(many)
        asyncio.run(conversation(silent))
    assert ask(served, "query-status")["running"]


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_client_that_does_not_read_is_dropped_and_nobody_else_notices(served: Served, kind: str) -> None:
    event = MigrationChanged(Direction.OUTGOING, MigrationStatus.ACTIVE)
    # An event takes more than 100 bytes; what the kernel's own buffers hold comes on top of the outbox.
    batch = 500
    batches = 2 * OUTBOX_LIMIT // 100 // batch

    async def conversation() -> int:
        async with asyncio.timeout(PATIENCE_S), connected(served.path) as good:
            match served.address(kind):
                case str(path):
                    reader, writer = await asyncio.open_unix_connection(path)
                case host, port:
                    sock = socket.socket()
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                    sock.connect((host, port))
                    reader, writer = await asyncio.open_connection(sock=sock)
            await reader.readline()
            writer.write(b'{"execute": "qmp_capabilities"}')
            await reader.readline()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await switch_events(good, on=True)
            with good.listener(names=("MIGRATION",)) as listener:
                for _ in range(batches):
                    for _ in range(batch):
                        served.guest.events.publish(event)
                    for _ in range(batch):
                        await listener.get()
            clients = served.server.clients
            writer.transport.abort()
            return clients

    assert asyncio.run(conversation()) == 1


async def status_of(client: QMPClient) -> str:
    """Query-migrate's status."""
    info: Any = await client.execute("query-migrate")
    return str(info.get("status", "none"))


async def _statuses_until(listener: EventListener, last: str) -> list[str]:
    statuses = []
    async for event in listener:
        judge_event(event)
        data = event["data"]
        assert isinstance(data, dict)
        statuses.append(data["status"])
        if statuses[-1] == last:
            break
    return statuses
