"""query-qmp-schema, judged by its own rules (qapi/introspect.json) and by QEMU's schema."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import introspection
import judges
from sealift.errors import InternalError
from sealift.vmm.qmp.commands import COMMANDS, query_schema
from sealift.vmm.qmp.events import EVENTS
from sealift.vmm.qmp.schema import schema
from sealift.vmm.qmp.table import Command, NoArguments

Info = dict[str, Any]

OURS = {"start-migrate-incoming", "start-migration-handler", "query-events"}
"""Commands that QEMU has not: two are the RFC's, one QEMU 6.0 dropped."""

NEWER = {"channels", "calc-time-unit", "sev-type"}
"""Members that came to QEMU after the release that Debian has (7.2)."""

DROPPED = {"skipped", "singlestep"}
"""Members that left QEMU after that release."""


@pytest.fixture(scope="module")
def infos() -> dict[str, Info]:
    """Our schema as a client sees it, by name."""
    found = introspection.schema()
    assert len(found) == len(query_schema(None, NoArguments())), "a name comes twice"  # type: ignore[arg-type]
    return found


def references(info: Info) -> Iterator[str]:
    """The types that an entity names."""
    for key in ("arg-type", "ret-type", "element-type"):
        if key in info:
            yield info[key]
    if info["meta-type"] in {"object", "alternate"}:
        yield from (member["type"] for member in info["members"])
        yield from (variant["type"] for variant in info.get("variants", ()))


def test_every_command_and_event_is_there(infos: dict[str, Info]) -> None:
    by_kind = {kind: [i["name"] for i in infos.values() if i["meta-type"] == kind] for kind in ("command", "event")}
    assert sorted(by_kind["command"]) == COMMANDS.names()
    assert sorted(by_kind["event"]) == sorted(EVENTS)


def test_every_type_that_is_named_is_there_and_every_one_there_is_named(infos: dict[str, Info]) -> None:
    reached = [name for name, info in infos.items() if info["meta-type"] in {"command", "event"}]
    for name in reached:
        reached += [reference for reference in references(infos[name]) if reference not in reached]
    assert set(reached) == set(infos)


def test_every_entity_has_the_members_of_its_kind(infos: dict[str, Info]) -> None:
    members = {
        "command": {"arg-type", "ret-type"},
        "event": {"arg-type"},
        "object": {"members"},
        "enum": {"members", "values"},
        "array": {"element-type"},
        "alternate": {"members"},
        "builtin": {"json-type"},
    }
    for info in infos.values():
        extra = {"tag", "variants"} if "tag" in info else set()
        assert set(info) == {"name", "meta-type"} | members[info["meta-type"]] | extra, info
        match info["meta-type"]:
            case "command" | "event":
                assert infos[info["arg-type"]]["meta-type"] == "object"
            case "array":
                assert info["name"] == f"[{info['element-type']}]"
            case "enum":
                assert [member["name"] for member in info["members"]] == info["values"]
            case "object" if "tag" in info:
                (tag,) = (member["type"] for member in info["members"] if member["name"] == info["tag"])
                assert [variant["case"] for variant in info["variants"]] == infos[tag]["values"]


def test_what_may_be_left_out_is_marked(infos: dict[str, Info]) -> None:
    (arguments,) = (infos[infos["sev-inject-launch-secret"]["arg-type"]],)
    assert arguments["members"] == [
        {"name": "packet-header", "type": "str"},
        {"name": "secret", "type": "str"},
        {"name": "gpa", "type": "int", "default": None},
    ]
    memory = infos[infos["query-memory-size-summary"]["ret-type"]]
    assert all("default" not in member for member in memory["members"])
    migration = infos[infos["query-migrate"]["ret-type"]]
    assert all(member["default"] is None for member in migration["members"])


def test_two_types_of_one_name_are_a_bug() -> None:
    one, two = (msgspec.defstruct("Same", [("x", kind)]) for kind in (int, str))
    commands = [Command(name, kind, lambda _, __: None) for name, kind in (("a", one), ("b", two))]
    for command in commands:
        command.handler.__annotations__["return"] = None
    with pytest.raises(InternalError, match="two types of the QMP schema are called Same"):
        schema(commands, {})


# --- QEMU as judge -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qemus() -> dict[str, Info]:
    """QEMU's schema."""
    program = judges.program("qemu-system-x86_64", "qemu-system-x86")
    command = [program, "-nodefaults", "-machine", "none", "-display", "none", "-S", "-qmp", "stdio"]
    replies: list[Any] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in ("qmp_capabilities", "query-qmp-schema"):
            process.stdin.write(json.dumps({"execute": word}))
        process.stdin.flush()
        while len(replies) < 2:  # only then may it quit, or it would not print the schema to its end
            reply = json.loads(process.stdout.readline())
            replies += [reply["return"]] if "return" in reply else []
        process.stdin.write(json.dumps({"execute": "quit"}))
        process.stdin.close()
        process.stdout.read()
    return {info["name"]: info for info in replies[1]}


def members_of(infos: dict[str, Info], name: str) -> dict[str, bool]:
    """An object's members, and whether they may be left out; those of its variants may."""
    found = {member["name"]: "default" in member for member in infos[name].get("members", ())}
    for variant in infos[name].get("variants", ()):
        found |= {member["name"]: True for member in infos[variant["type"]]["members"]}
    return found


def is_new(name: str) -> bool:
    """Whether it is nobody's but ours, or newer than the QEMU that judges."""
    return name.startswith("x-sealift-") or name in NEWER


def test_what_has_a_name_of_qemus_is_qemus(infos: dict[str, Info], qemus: dict[str, Info]) -> None:
    for name, ours in infos.items():
        if ours["meta-type"] in {"command", "event"} and not name.startswith("x-sealift-") and name not in OURS:
            assert qemus[name]["meta-type"] == ours["meta-type"], name


def test_a_request_that_qemu_understands_is_understood(infos: dict[str, Info], qemus: dict[str, Info]) -> None:
    """No argument under a name of QEMU's is anything else there, and none is required that QEMU does not require."""
    for name, ours in infos.items():
        theirs = qemus.get(name)
        if ours["meta-type"] == "command" and theirs is not None:
            known = members_of(qemus, theirs["arg-type"])
            for member, optional in members_of(infos, ours["arg-type"]).items():
                assert is_new(member) or member in known, (name, member)
                assert optional or not known[member], (name, member)


def results_of(infos: dict[str, Info], qemus: dict[str, Info]) -> Iterator[tuple[str, Info, Info]]:
    """Every object that commands answer with, by its place in the answer, beside QEMU's at that place."""
    waiting = [
        (name, ours["ret-type"], qemus[name]["ret-type"])
        for name, ours in infos.items()
        if ours["meta-type"] == "command" and name in qemus and name != "query-qmp-schema"
    ]
    while waiting:
        place, our_name, their_name = waiting.pop()
        ours, theirs = infos[our_name], qemus[their_name]
        assert ours["meta-type"] == theirs["meta-type"], place
        match ours["meta-type"]:
            case "array":
                waiting.append((f"{place}[]", ours["element-type"], theirs["element-type"]))
            case "enum":
                new = set(ours["values"]) - set(theirs["values"])
                assert not new, (place, new)
            case "builtin":
                assert ours["json-type"] == theirs["json-type"], place
            case "object":
                yield place, ours, theirs
                known = {member["name"]: member["type"] for member in theirs["members"]}
                waiting += [
                    (f"{place}.{member['name']}", member["type"], known[member["name"]])
                    for member in ours["members"]
                    if member["name"] in known
                ]


def test_an_answer_is_qemus(infos: dict[str, Info], qemus: dict[str, Info]) -> None:
    """What QEMU's users look for is there, as QEMU has it, and what QEMU does not have has our prefix."""
    for place, ours, theirs in results_of(infos, qemus):
        known, mine = (members_of(schema, info["name"]) for schema, info in ((qemus, theirs), (infos, ours)))
        for member, optional in mine.items():
            assert is_new(member) or member in known, (place, member)
            assert not optional or is_new(member) or known[member], (place, member)
        for member, optional in known.items():
            assert optional or member in mine or member in DROPPED, (place, member)


def test_a_data_of_an_event_is_qemus(infos: dict[str, Info], qemus: dict[str, Info]) -> None:
    for name, ours in infos.items():
        if ours["meta-type"] == "event":
            known = members_of(qemus, qemus[name]["arg-type"])
            mine = members_of(infos, ours["arg-type"])
            assert set(mine) <= set(known)
            assert all(optional or member in mine for member, optional in known.items())
