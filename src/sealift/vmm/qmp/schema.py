"""query-qmp-schema: what is offered here, in QEMU's introspection format (qapi/introspect.json).

Made from the very types that decode arguments and encode results, so it cannot say anything else than they do::

    command or event ── argument type, result type ── msgspec.inspect ──► object, enum, array, alternate, builtin

QAPI has no maps (they are ``any``) and no binary values (base64, a ``str``). A member is optional where a default
stands in for it: always in what clients send, in what they get only where defaults are omitted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType, inspect

from sealift.errors import InternalError
from sealift.vmm.qmp.table import Command


class JsonType(enum.Enum):
    """QEMU's JSONType."""

    STRING = "string"
    NUMBER = "number"
    INT = "int"
    BOOLEAN = "boolean"
    NULL = "null"
    VALUE = "value"


class SchemaInfo(msgspec.Struct, frozen=True, rename="kebab", tag_field="meta-type"):
    """QEMU's SchemaInfo."""

    name: str


class SchemaBuiltin(SchemaInfo, frozen=True, tag="builtin"):
    """A type of JSON's own."""

    json_type: JsonType


class SchemaEnumMember(msgspec.Struct, frozen=True):
    """One value of an enumeration."""

    name: str


class SchemaEnum(SchemaInfo, frozen=True, tag="enum"):
    """An enumeration; `values` is its older, deprecated form, which older clients read."""

    members: tuple[SchemaEnumMember, ...]
    values: tuple[str, ...]


class SchemaArray(SchemaInfo, frozen=True, tag="array"):
    """A list."""

    element_type: str


class SchemaMember(msgspec.Struct, frozen=True):
    """A member of an object; an optional one has a `default` of null."""

    name: str
    type: str
    default: Any = UNSET


class SchemaVariant(msgspec.Struct, frozen=True):
    """What an object has besides when its tag is `case`."""

    case: str
    type: str


class SchemaObject(SchemaInfo, frozen=True, tag="object"):
    """An object, with the member that chooses among its variants if it has any."""

    members: tuple[SchemaMember, ...]
    tag: str | UnsetType = UNSET
    variants: tuple[SchemaVariant, ...] | UnsetType = UNSET


class SchemaAlternative(msgspec.Struct, frozen=True):
    """One of an alternate's types."""

    type: str


class SchemaAlternate(SchemaInfo, frozen=True, tag="alternate"):
    """One of several types that JSON itself tells apart."""

    members: tuple[SchemaAlternative, ...]


class SchemaCommand(SchemaInfo, frozen=True, tag="command"):
    """A command; none can be executed out of band."""

    arg_type: str
    ret_type: str


class SchemaEvent(SchemaInfo, frozen=True, tag="event"):
    """An event."""

    arg_type: str


AnyInfo: TypeAlias = (
    SchemaBuiltin | SchemaEnum | SchemaArray | SchemaObject | SchemaAlternate | SchemaCommand | SchemaEvent
)

_EMPTY: Final = SchemaObject("q_empty", ())
"""What commands without arguments take, and those without a result return."""

_BUILTINS: Final[dict[type[inspect.Type], SchemaBuiltin]] = {
    inspect.StrType: SchemaBuiltin("str", JsonType.STRING),
    inspect.BytesType: SchemaBuiltin("str", JsonType.STRING),
    inspect.IntType: SchemaBuiltin("int", JsonType.INT),
    inspect.FloatType: SchemaBuiltin("number", JsonType.NUMBER),
    inspect.BoolType: SchemaBuiltin("bool", JsonType.BOOLEAN),
    inspect.NoneType: SchemaBuiltin("null", JsonType.NULL),
    inspect.AnyType: SchemaBuiltin("any", JsonType.VALUE),
    inspect.DictType: SchemaBuiltin("any", JsonType.VALUE),
}


def schema(commands: Iterable[Command[Any]], events: Mapping[str, type[msgspec.Struct] | None]) -> tuple[AnyInfo, ...]:
    """Every command, every event, and every type that they lead to.

    Raises:
        InternalError: a type has no equivalent in QAPI, or two have the same name.
    """
    types = _Types()
    found: list[AnyInfo] = [
        SchemaCommand(command.name, types.argument(command.arguments), types.result(command.result))
        for command in commands
    ]
    found += [SchemaEvent(name, types.result(data)) for name, data in events.items()]
    return (*found, *types.all())


class _Types:
    """Collects types by name. `sent` types are those that clients send."""

    def __init__(self) -> None:
        self._infos: dict[str, AnyInfo] = {}
        self._origins: dict[str, object] = {}

    def all(self) -> tuple[AnyInfo, ...]:
        """All there are."""
        return tuple(self._infos.values())

    def argument(self, kind: type[msgspec.Struct]) -> str:
        """The name of a command's arguments."""
        return self._name(inspect.type_info(kind), sent=True)

    def result(self, kind: Any) -> str:  # noqa: ANN401  # any annotation
        """The name of a result, or of an event's data; None is nothing."""
        return self._add(_EMPTY, _EMPTY) if kind is None else self._name(inspect.type_info(kind), sent=False)

    def _add(self, info: AnyInfo, origin: object) -> str:
        if self._origins.setdefault(info.name, origin) != origin:
            raise InternalError(f"two types of the QMP schema are called {info.name}")
        self._infos[info.name] = info
        return info.name

    def _name(self, kind: inspect.Type, *, sent: bool) -> str:
        match kind:
            case inspect.StructType():
                return self._struct(kind, sent=sent)
            case inspect.EnumType(cls):
                return self._enum(cls.__name__, [member.value for member in cls], cls)
            case inspect.UnionType(types):
                return self._union(types, sent=sent)
            case inspect.ListType(item) | inspect.VarTupleType(item):
                element = self._name(item, sent=sent)
                return self._add(SchemaArray(f"[{element}]", element), element)
            case inspect.Metadata(inner):
                return self._name(inner, sent=sent)
            case _ if (builtin := _BUILTINS.get(type(kind))) is not None:
                return self._add(builtin, builtin)
            case _:
                raise InternalError(f"QAPI has no type like {type(kind).__name__}")

    def _enum(self, name: str, values: list[str], origin: object) -> str:
        return self._add(SchemaEnum(name, tuple(map(SchemaEnumMember, values)), tuple(values)), origin)

    def _struct(self, kind: inspect.StructType, *, sent: bool) -> str:
        if not kind.fields:
            return self._add(_EMPTY, _EMPTY)
        optional = sent or kind.cls.__struct_config__.omit_defaults
        # The same type may go both ways, and is another one each way if it does not omit its defaults.
        members = tuple(self._member(field, sent=sent, optional=optional) for field in kind.fields)
        has_defaults = any(not field.required for field in kind.fields)
        name = f"{kind.cls.__name__}-arg" if sent and has_defaults and not _omits(kind) else kind.cls.__name__
        return self._add(SchemaObject(name, members), (kind.cls, name))

    def _member(self, field: inspect.Field, *, sent: bool, optional: bool) -> SchemaMember:
        unset = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT  # or it is required
        optional = not field.required and (optional or unset)
        kind = _without_null(field.type) if optional else field.type
        name = self._name(kind, sent=sent)
        return SchemaMember(field.encode_name, name, None) if optional else SchemaMember(field.encode_name, name)

    def _union(self, types: tuple[inspect.Type, ...], *, sent: bool) -> str:
        structs = [kind for kind in types if isinstance(kind, inspect.StructType)]
        if len(structs) == len(types):
            return self._tagged(structs, sent=sent)
        names = sorted(self._name(kind, sent=sent) for kind in types)
        alternatives = tuple(map(SchemaAlternative, names))
        return self._add(SchemaAlternate("-or-".join(names), alternatives), alternatives)

    def _tagged(self, structs: list[inspect.StructType], *, sent: bool) -> str:
        """A flat union: its tag chooses which further members it has."""
        tag = structs[0].tag_field
        if tag is None:
            raise InternalError(f"nothing tells {structs[0].cls.__name__} apart from the others of its union")
        variants = sorted(
            (SchemaVariant(str(kind.tag), self._struct(kind, sent=sent)) for kind in structs),
            key=lambda variant: variant.case,
        )
        cases = [variant.case for variant in variants]
        name = _common_base(structs)
        tags = self._enum(f"{name}-{tag}", cases, tuple(cases))
        members = (SchemaMember(tag, tags),)
        return self._add(SchemaObject(name, members, tag, tuple(variants)), (tag, name))


def _common_base(structs: list[inspect.StructType]) -> str:
    """The name of a union's type: it is the class that all its types derive from."""
    first, *others = (kind.cls.__mro__[1:] for kind in structs)
    for cls in first:
        if issubclass(cls, msgspec.Struct) and cls is not msgspec.Struct and all(cls in bases for bases in others):
            return cls.__name__
    raise InternalError(f"the types of a union, {structs[0].cls.__name__} and others, have no common base")


def _omits(kind: inspect.StructType) -> bool:
    return bool(kind.cls.__struct_config__.omit_defaults)


def _without_null(kind: inspect.Type) -> inspect.Type:
    if not isinstance(kind, inspect.UnionType):
        return kind
    rest = tuple(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return rest[0] if len(rest) == 1 else inspect.UnionType(rest)
