"""Frozen dataclasses from decoded JSON, with every problem reported at once."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Field:
    """What a field of a dataclass may hold.

    Attributes:
        hint: Its type.
        optional: Whether it may be missing.
        inner: The dataclass that it is, or None.
        record: The dataclass in the type `tuple[dataclass, ...]`, or None.
    """

    hint: Any
    optional: bool
    inner: type | None
    record: type | None


@cache
def _fields_of(cls: type) -> Mapping[str, _Field]:
    """Return the fields of a dataclass; resolving its hints takes longer than to read a file."""
    hints = typing.get_type_hints(cls)
    optional = {
        field.name
        for field in dataclasses.fields(typing.cast("Any", cls))
        if field.default is not dataclasses.MISSING
    }
    return {
        name: _Field(
            hint=hint,
            optional=name in optional,
            inner=hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None,
            record=_record_of(hint),
        )
        for name, hint in hints.items()
    }


def build_dataclass(cls: type[_T], value: object, path: str, problems: list[str]) -> _T:
    """Build a dataclass, and the dataclasses in it, from a JSON object.

    Args:
        cls: The dataclass. Fields with a default may be missing from the object.
        value: Decoded JSON.
        path: Path of the value in the document, ending in a dot unless empty.
        problems: Problems are appended here, one `path: what was got, what was expected` each.

    Returns:
        The dataclass; meaningful only if `problems` is empty.
    """
    if not isinstance(value, Mapping):
        problems.append(f"{path.rstrip('.')}: got {type(value).__name__}, expected an object")
        return typing.cast("_T", None)
    known = _fields_of(typing.cast("type", cls))
    problems += [f"{path}{unknown}: unknown field" for unknown in sorted(set(value) - set(known))]
    fields: dict[str, Any] = {}
    for name, field in known.items():
        if name not in value:
            if field.optional:
                continue
            problems.append(f"{path}{name}: missing")
        elif field.inner is not None:
            fields[name] = build_dataclass(field.inner, value[name], f"{path}{name}.", problems)
        elif field.record is not None and isinstance(value[name], list | tuple):
            fields[name] = tuple(
                build_dataclass(field.record, item, f"{path}{name}[{number}].", problems)
                for number, item in enumerate(value[name])
            )
        else:
            hint = field.hint
            fields[name] = _convert(hint, value[name])
            if not _fits(hint, fields[name]):
                wanted = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else hint
                problems.append(f"{path}{name}: got {value[name]!r}, expected {wanted}")
    return cls(**fields) if not problems else typing.cast("_T", None)


def _record_of(hint: object) -> type | None:
    """Return the dataclass in the type hint `tuple[dataclass, ...]`, or None."""
    if typing.get_origin(hint) is not tuple:
        return None
    record = typing.get_args(hint)[0]
    return record if isinstance(record, type) and dataclasses.is_dataclass(record) else None


def _convert(hint: object, value: object) -> object:
    """Turn lists into tuples and integers into floats where the hint asks for them.

    JSON has no tuples, and some programs write the float 1.0 as 1.
    """
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, list) and any(typing.get_origin(member) is tuple for member in members):
        return tuple(value)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and float in members and int not in members:
        return float(typing.cast("int", value))
    return value


def _fits(hint: Any, value: object) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is types.UnionType:
        return any(_fits(argument, value) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _fits(arguments[1], _convert(arguments[1], item))
            for key, item in value.items()
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
