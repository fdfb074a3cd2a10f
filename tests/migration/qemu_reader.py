"""An independent reader of QEMU's migration stream, as scripts/analyze-migration.py (8.2) reads one.

Written from the format alone: it shares no code with the program, and is as strict as the script where that raises.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Final

EOF, START, PART, END, FULL, DESCRIPTION, CONFIGURATION, COMMAND, FOOTER = 0, 1, 2, 3, 4, 6, 7, 8, 0x7E
ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, FLUSH = 0x02, 0x04, 0x08, 0x10, 0x20, 0x200
BUILT_IN: Final = ("ram", 0)
NAME_LIMIT: Final = 127
"""The script reads lengths of names as signed bytes."""


@dataclass
class Stream:
    """What was in it: `ram` by block, and what was read of every other section, by name and instance."""

    description: dict[str, Any]
    machine: str = ""
    ram: dict[str, bytearray] = field(default_factory=dict)
    sections: dict[tuple[str, int], list[dict[str, bytes]]] = field(default_factory=dict)
    content_pages: int = 0
    zero_pages: int = 0


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        assert self.at + length <= len(self.data), f"the stream ends at {self.at:#x}, {length} bytes short"
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(">" + form, self.take(struct.calcsize(form)))
        return int(value)

    def name(self) -> str:
        length = self.number("B")
        assert length <= NAME_LIMIT
        return self.take(length).decode()


def find_description(data: bytes) -> tuple[int, dict[str, Any]]:
    """Where the description's section begins, and its JSON: last zero byte, then the first brace."""
    brace = data.index(b"{", data.rindex(0))
    assert data[brace - 5] == DESCRIPTION
    (length,) = struct.unpack_from(">I", data, brace - 4)
    assert brace + length == len(data), "something follows the description"
    assert 0 not in data[brace:]
    description = json.loads(data[brace:])
    assert isinstance(description, dict)
    return brace - 5, description


def read(data: bytes) -> Stream:
    """Everything in a stream, which must be whole."""
    end, description = find_description(data)
    page_size = description["page_size"]
    assert isinstance(page_size, int)
    described = {(device["name"], device["instance_id"]): device for device in description["devices"]}
    assert len(described) == len(description["devices"])
    stream, cursor = Stream(description), _Cursor(data)
    assert (cursor.number("I"), cursor.number("I")) == (0x5145564D, 3)
    open_sections: dict[int, tuple[str, int]] = {}
    while (kind := cursor.number("B")) != EOF:
        if kind == CONFIGURATION:
            stream.machine = cursor.take(cursor.number("I")).decode()
            continue
        assert kind in {START, PART, END, FULL}, f"section type {kind:#x} at {cursor.at - 1:#x}"
        number = cursor.number("I")
        if kind in {START, FULL}:
            key = cursor.name(), cursor.number("I")
            version = cursor.number("I")
            assert number not in open_sections
            assert key not in open_sections.values()
            open_sections[number] = key
            assert version == (4 if key == BUILT_IN else described[key]["version"])
        key = open_sections[number]
        if key == BUILT_IN:
            _read_ram(cursor, stream, page_size)
        else:
            stream.sections.setdefault(key, []).append(_read_fields(cursor, described[key]))
        assert cursor.number("B") == FOOTER
        assert cursor.number("I") == number
    assert cursor.at == end, "the description does not follow the end of sections"
    assert set(described) == set(stream.sections), "a section is described and not there"
    return stream


def _read_fields(cursor: _Cursor, device: dict[str, Any]) -> dict[str, bytes]:
    assert {"name", "instance_id", "vmsd_name", "version", "fields"} <= set(device)
    found = {}
    for each in device["fields"]:
        assert each["type"] == "buffer"
        found[each["name"]] = cursor.take(each["size"])
    return found


def _read_ram(cursor: _Cursor, stream: Stream, page_size: int) -> None:
    block = None
    while True:
        header = cursor.number("Q")
        offset, flags = header & ~(page_size - 1), header & (page_size - 1)
        if flags & MEM_SIZE:
            assert flags == MEM_SIZE
            while offset > 0:
                name, size = cursor.name(), cursor.number("Q")
                stream.ram[name] = bytearray(size)
                offset -= size
            assert offset == 0
            continue
        if flags == FLUSH:
            continue
        if flags == EOS:
            return
        if not flags & CONTINUE:
            block = stream.ram[cursor.name()]
        assert block is not None
        assert offset + page_size <= len(block)
        match flags & ~CONTINUE:
            case 0x02:
                block[offset : offset + page_size] = bytes([cursor.number("B")]) * page_size
                stream.zero_pages += 1
            case 0x08:
                block[offset : offset + page_size] = cursor.take(page_size)
                stream.content_pages += 1
            case unknown:
                raise AssertionError(f"unknown flags {unknown:#x} at {cursor.at:#x}")
