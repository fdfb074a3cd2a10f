"""A whole migration over QMP alone, on both hosts, by QEMU's own client and by its shell."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from harness import PATIENCE_S, Sealift
from introspection import judge_event
from qmp.test_server import connected, switch_events
from sealift.cli.places import Host

Start = Callable[..., Sealift]
GUEST = ("--memory", "16M", "--kernel", "ledger", "--append", "ws=16 flip=2 every=4 burst=4 pause=10000")
ANYWHERE = [{"channel-type": "main", "addr": {"transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "0"}}]


def both(sealift: Start, other_host: Host, tmp_path: Path) -> tuple[Sealift, Path, Sealift, tuple[str, int]]:
    """A guest that runs, with QMP at a path; and a VMM that waits to be told of one, with QMP at a port."""
    path = tmp_path / "a.sock"
    source = sealift("run", "--name", "a", *GUEST, "--qmp", f"unix:{path}")
    # The owner's directory is made by the first who needs it.
    source.stderr.wait_for("guest a runs")
    qmp = ("--qmp", "tcp:127.0.0.1:0")
    target = sealift("run", "--name", "b", "--host", other_host.path, "--incoming", "defer", *qmp)
    target.stderr.wait_for("waiting to be told")
    match = re.search(r"QMP is served at tcp:127\.0\.0\.1:(\d+)", target.stderr.text)
    assert match is not None
    return source, path, target, ("127.0.0.1", int(match[1]))


async def query(client: QMPClient, command: str) -> Any:
    """A query's answer."""
    return await client.execute(command)


async def events_until(listener: Any, status: str) -> list[tuple[str, dict[str, Any]]]:
    """Events up to and with the migration's `status`."""
    seen = []
    async for event in listener:
        judge_event(event)
        seen.append((str(event["event"]), dict(event.get("data", {}))))
        if seen[-1] == ("MIGRATION", {"status": status}):
            break
    return seen


def test_qemus_client_moves_a_guest(sealift: Start, other_host: Host, tmp_path: Path) -> None:
    source, path, target, port = both(sealift, other_host, tmp_path)

    async def conversation() -> None:
        async with asyncio.timeout(2 * PATIENCE_S), connected(path) as here, connected(port) as there:
            assert await query(there, "query-status") == {"running": False, "status": "inmigrate"}
            assert await query(there, "query-migrate") == {}
            for client in (here, there):
                await switch_events(client, on=True)
            await here.execute("start-migration-handler")
            with pytest.raises(ExecuteError, match="is no migration address"):
                await there.execute("migrate-incoming", {"uri": "carrier-pigeon"})
            pause = [{"capability": "pause-before-switchover", "state": True}]
            await here.execute("migrate-set-capabilities", {"capabilities": pause})
            with here.listener() as leaving, there.listener() as arriving:
                await there.execute("migrate-incoming", {"channels": ANYWHERE})
                (address,) = (await query(there, "query-migrate"))["socket-address"]
                target.stderr.wait_for(f"waiting for a guest at tcp:127.0.0.1:{address['port']}")
                with pytest.raises(ExecuteError, match="has already been started"):
                    await there.execute("start-migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
                channel = {"channel-type": "main", "addr": address | {"transport": "socket"}}
                await here.execute("migrate", {"channels": [channel]})
                left = await events_until(leaving, "pre-switchover")
                with pytest.raises(ExecuteError, match=r"^Migration not in expected state: "):
                    await here.execute("migrate-continue", {"state": "device"})
                await here.execute("migrate-continue", {"state": "pre-switchover"})
                left, arrived = (
                    left + await events_until(leaving, "completed"),
                    await events_until(arriving, "completed"),
                )
            assert [data["status"] for name, data in left if name == "MIGRATION"] == [
                *("setup", "active", "pre-switchover", "device", "completed")
            ]
            assert [data["status"] for name, data in arrived if name == "MIGRATION"] == ["setup", "completed"]
            info = await query(here, "query-migrate")
            passes = [data["pass"] for name, data in left if name == "MIGRATION_PASS"]
            assert passes == list(range(1, info["ram"]["dirty-sync-count"] + 1))
            assert ("STOP", {}) in left
            assert await query(here, "query-status") == {"running": False, "status": "postmigrate"}
            while not (await query(there, "query-status"))["running"]:
                pass
            assert await query(there, "query-name") == {"name": "b"}
            with there.listener(names=("SHUTDOWN",)) as ending:
                await there.execute("quit")
                assert (await ending.get())["data"] == {"guest": False, "reason": "host-qmp-quit"}

    asyncio.run(conversation())
    assert (source.wait(), target.wait()) == (0, 0)
    assert "FAULT" not in source.stdout.text + target.stdout.text
    assert not path.exists()


def shell(address: str, *lines: str) -> str:
    """What qmp-shell prints for some lines."""
    command = [sys.executable, "-c", "from qemu.qmp.qmp_shell import main; main()", address]
    done = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qemus_shell_moves_a_guest(sealift: Start, other_host: Host, tmp_path: Path) -> None:
    source, path, target, (host, port) = both(sealift, other_host, tmp_path)
    there = f"{host}:{port}"
    said = shell(there, "migrate-incoming uri=tcp:127.0.0.1:0", "query-migrate")
    match = re.search(r"'port': '(\d+)'|\"port\": \"(\d+)\"", said)
    assert match is not None, said
    uri = f"tcp:127.0.0.1:{match[1] or match[2]}"
    said = shell(
        str(path),
        "migrate-set-parameters downtime-limit=500",
        "migrate-set-capabilities capabilities=[{'capability':'events','state':true}]",
        f"migrate uri={uri}",
    )
    assert said.count('{"return": {}}') == 3, said
    target.stderr.wait_for("has arrived")
    assert source.wait() == 0
    assert "running" in shell(there, "query-status")
    shell(there, "quit")
    assert target.wait() == 0
