"""A TOML file of a type: reads it with every mistake named at once, and writes its template and its reference.

What the fields of the types mean stands in `study_fields.toml`. The `extra` of a name has its `kind` and a function
`names`, or one that raises BadInput, `check`.
"""

import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from medserve.errors import BadInput, unknown

Kind = TypeVar("Kind")
WIDTH = 100
"""Of the template's comments, in characters."""
MEANINGS: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("study_fields.toml").read_text("utf-8"))
"""What each field means, by type and name."""


def convert(value: object, kind: type[Kind]) -> Kind:
    """What a TOML file holds, as a noun. Raises BadInput with everything that is wrong in it, a line each."""
    if found := list(_problems(value, _type(kind), "", "")):
        raise BadInput(*found)
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise BadInput(str(error)) from None


def template(kind: type[Any], given: Mapping[str, object], examples: Mapping[str, object]) -> str:
    """A commented TOML file of every field, by its path such as `measure.rate`: those `given` with their value.

    The others are commented out, with their default or, where that is none or empty, the value of `examples`.
    """

    def entry(field: inspect.Field, path: str, meaning: str) -> str:
        value = given.get(path, examples.get(path, None if field.required else _default(field)))
        return "\n".join((*_comment(field, meaning), f"{'' if path in given else '#'}{field.name} = {_toml(value)}"))

    plain, tables = [], []
    for field in _type(kind).fields:
        meaning, (inner, repeated) = MEANINGS[kind.__name__][field.name], _inner(field.type)
        if isinstance(inner, inspect.StructType):
            head = f"[[{field.name}]]" if repeated else f"[{field.name}]"
            off = "" if any(path.startswith(f"{field.name}.") for path in given) else "#"
            meanings = MEANINGS[inner.cls.__name__]
            entries = [entry(one, f"{field.name}.{one.name}", meanings[one.name]) for one in inner.fields]
            tables.append("\n".join((*_comment(field, meaning), off + head, *entries)))
        else:
            plain.append(entry(field, field.name, meaning))
    return "\n\n".join(("\n".join(plain), *tables)) + "\n"


def reference(kind: type[Any], title: str) -> str:
    """A Markdown table of every field, and one of each table within it."""
    info, parts, meanings = _type(kind), [], MEANINGS[kind.__name__]
    lines = [f"**{title}**", "", "| field | value | default | meaning |", "|---|---|---|---|"]
    for field in info.fields:
        inner, repeated = _inner(field.type)
        instead = _instead(field.type)
        given = f"must be given, or `[[{instead}]]`" if instead else "must be given"
        default = given if field.required or instead else "" if _is_table(inner) else f"`{_toml(_default(field))}`"
        default = "none" if default in ("`null`", "`[]`", "`{}`", '`""`') else default
        lines.append(f"| `{field.name}` | {_words(field.type)} | {default} | {meanings[field.name]} |")
        if isinstance(inner, inspect.StructType):
            head = f"[[{field.name}]]" if repeated else f"[{field.name}]"
            parts.append(reference(inner.cls, f"{title} {head}" if title.startswith("[") else head))
    return "\n\n".join(("\n".join(lines), *parts))


def _problems(value: object, kind: inspect.Type, table: str, field: str, item: int = 0) -> Iterator[str]:
    """What is wrong with the value of a field, or with an item of it; `table` names what holds it, with a colon."""
    shown = f"value {item} of '{field}'" if item else f"'{field}'"
    if isinstance(kind, inspect.Metadata):
        extra = kind.extra or {}
        if isinstance(value, str) and "check" in extra:
            try:
                extra["check"](value)
            except BadInput as error:
                yield f"{table}{error}"
        elif isinstance(value, str) and "names" in extra and value not in (known := list(extra["names"]())):
            yield table + str(unknown(extra["kind"], value, known))
        else:
            yield from _problems(value, kind.type, table, field, item)
    elif isinstance(kind, inspect.UnionType):
        yield from _problems(value, _present(kind, isinstance(value, list)), table, field, item)
    elif isinstance(kind, inspect.StructType) and isinstance(value, dict):
        inside = f"{table}[{field}]: " if field and not item else table
        fields = {one.name: one for one in kind.fields}
        for key in value:
            if key in fields:
                yield from _problems(value[key], fields[key].type, inside, key)
            else:
                yield inside + str(unknown("field", str(key), fields))
        for one in kind.fields:
            instead = _instead(one.type)
            if one.required and one.name not in value:
                yield f"{inside}'{one.name}' is missing; expected {_words(one.type)}"
            elif instead and not value.get(one.name, ()) and not value.get(instead):
                yield f"{inside}'{one.name}' is missing; expected {_words(one.type)}, or [[{instead}]]"
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list) and _is_length(len(value), kind):
        tables = isinstance(_inner(kind.item_type)[0], inspect.StructType)
        for index, one in enumerate(value, 1):
            holder = f"{table}[[{field}]] {index}: " if tables else table
            yield from _problems(one, kind.item_type, holder, field, index)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, one in value.items():
            if isinstance(kind.key_type, inspect.IntType) and not (key.isascii() and key.isdigit()):
                yield f"{table}a key of {shown} is {key!r}; expected a {_words(kind.key_type)}"
            yield from _problems(one, kind.value_type, table, f"{field}.{key}")
    elif isinstance(kind, inspect.LiteralType) and isinstance(value, str):
        if value not in kind.values:
            yield table + str(unknown(f"value of '{field}'", value, map(str, kind.values)))
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, dict) and _is_table(_inner(kind)[0]):
        yield f"{table}{shown} is one table; write [[{field}]] above it"
    elif isinstance(kind, inspect.VarTupleType) and not isinstance(value, list | dict):
        # A command is written as its words.
        like = value.split() if isinstance(value, str) and isinstance(kind.item_type, inspect.StrType) else [value]
        given, listed = (json.dumps(one, default=str)[:80] for one in (value, like))
        yield f"{table}{shown} is {given}; expected a list of {_words(kind)}, as in {listed}"
    elif not _fits(value, kind):
        yield f"{table}{shown} is {json.dumps(value, default=str)[:80]}; expected {_words(kind)}"


def _instead(kind: inspect.Type) -> str | None:
    """The field that may stand in the place of one of this type, null where none may."""
    extra = kind.extra or {} if isinstance(kind, inspect.Metadata) else {}
    found: str | None = extra.get("unless")
    return found


def _is_length(length: int, kind: inspect.VarTupleType) -> bool:
    return (kind.min_length or 0) <= length and (kind.max_length is None or length <= kind.max_length)


def _fits(value: object, kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.AnyType):
        return True
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(kind, inspect.IntType | inspect.FloatType):
        return False
    if not isinstance(value, int if isinstance(kind, inspect.IntType) else int | float) or not isfinite(value):
        return False
    low = (kind.ge is None or value >= kind.ge) and (kind.gt is None or value > kind.gt)
    return low and (kind.le is None or value <= kind.le) and (kind.lt is None or value < kind.lt)


def _words(kind: inspect.Type, many: str = "") -> str:
    """A type as a user would say it; `many` is the ending of several of them."""
    if isinstance(kind, inspect.Metadata):
        extra = kind.extra or {}
        names = f": {', '.join(extra['names']())}" if "names" in extra else ""
        if "unless" in extra and isinstance(kind.type, inspect.VarTupleType):
            return f"one or more {_words(kind.type.item_type, 's')}"
        return f"{extra['kind']}{many}{names}" if "kind" in extra else _words(kind.type, many)
    if isinstance(kind, inspect.UnionType):
        one, more = _present(kind), _present(kind, several=True)
        if more is one:
            return _words(one, many)
        of_same = isinstance(more, inspect.VarTupleType) and more.item_type == one
        return f"{_words(one, many)}, or {'a list of them' if of_same else _words(more)}"
    if isinstance(kind, inspect.VarTupleType):
        if isinstance(_inner(kind.item_type)[0], inspect.StructType):
            return "tables"
        count = str(kind.max_length) if kind.max_length else "one or more" if kind.min_length else "any number of"
        return f"{count} {_words(kind.item_type, 's')}"
    if isinstance(kind, inspect.LiteralType):
        return f"{'values' if many else 'one'} of {', '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        ends = ((kind.ge, "at least"), (kind.gt, "above"), (kind.le, "at most"), (kind.lt, "below"))
        bounds = ", ".join(f"{word} {end}" for end, word in ends if end is not None)
        what = ("whole number" if isinstance(kind, inspect.IntType) else "number") + many
        return f"{what}, {bounds}" if bounds else what
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return "table"
    return "true or false" if isinstance(kind, inspect.BoolType) else f"text{many}"


def _comment(field: inspect.Field, meaning: str) -> list[str]:
    text = f"{meaning} ({_words(field.type)})"
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _default(field: inspect.Field) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.to_builtins(field.default_factory())
    return msgspec.to_builtins(field.default)


def _inner(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    """The type without its metadata, and whether it is of a list."""
    repeated = False
    while isinstance(kind, inspect.Metadata | inspect.VarTupleType | inspect.UnionType):
        if isinstance(kind, inspect.UnionType):
            kind = _present(kind)
        else:
            repeated = repeated or isinstance(kind, inspect.VarTupleType)
            kind = kind.type if isinstance(kind, inspect.Metadata) else kind.item_type
    return kind, repeated


def _present(kind: inspect.UnionType, several: bool = False) -> inspect.Type:
    """The type of an optional field that is given; of one value or several of them, the type of either."""
    present = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    return next((one for one in present if isinstance(one, inspect.VarTupleType) == several), present[0])


def _is_table(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.StructType)


def _toml(value: object) -> str:
    """A value as TOML writes it within a line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


_TYPES: dict[type[Any], inspect.StructType] = {}
"""What is known of each type; finding it takes milliseconds."""


def _type(kind: type[Any]) -> inspect.StructType:
    if kind not in _TYPES:
        found = inspect.type_info(kind)
        assert isinstance(found, inspect.StructType)
        _TYPES[kind] = found
    return _TYPES[kind]
