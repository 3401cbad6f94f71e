"""Converts a decoded TOML document to the configuration's tree, with a line for each value that doesn't fit its type.

A refused value is replaced by its default, so that reading continues and all faults are found at once. Unknown keys and
`${ENV}` outside secrets are refused. What sections mean to each other is checked by gateway/config/check.py.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

import msgspec

from gateway.config.types import Secret, _Section

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Problems:
    """The faults of a configuration, one line for each path. A path that already has one, itself or in a part of it,
    gets no second.
    """

    def __init__(self, secrets: Collection[str] | None = None) -> None:
        """`secrets`: paths of the secrets that the caller uses, None for all. Others may name variables that are not
        set.
        """
        self.lines: list[str] = []
        self._paths: set[str] = set()
        self._secrets = secrets
        self._unused: set[str] = set()

    def is_unused(self, path: str) -> bool:
        """True if the caller doesn't use this secret; faults of its value are then ignored."""
        if self._secrets is None or path in self._secrets:
            return False
        self._unused.add(path)
        return True

    def add(self, path: str, message: str) -> None:
        is_known = any(one == path or one.startswith((f"{path}[", f"{path}.")) for one in self._paths)
        if not is_known and path not in self._unused:
            self._paths.add(path)
            self.lines.append(f"{path}: {message}")

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def check_known(self, path: str, what: str, name: str, known: Collection[str]) -> None:
        """Add a fault if the name isn't among the known ones. `what`: the kind of thing that it names."""
        if name not in known:
            self.add(path, f"no {what} named {name!r}{did_you_mean(name, known)}")


def unreadable(name: str) -> str:
    """Why a name can't be used, because nobody could read or type it; empty if it can."""
    if not name.strip():
        return "is empty"
    return "holds a line break or another control character" if CONTROL.search(name) else ""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Suggests the known name that is closest; empty if none is close."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@cache
def _types(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


@cache
def _fields(section: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(section)  # cached, as it evaluates all annotations: seconds for thousands of keys


def read_section(section: Any, data: object, path: str, env: Mapping[str, str], problems: Problems) -> Any:
    """The section (a Struct type) with these values; faults go to `problems`. `path`: empty for the whole tree."""
    types = _types(section)
    if not isinstance(data, Mapping):
        problems.add(path, "expected a table")
        data = {}
    for key in sorted(data.keys() - types.keys()):
        problems.add(_join(path, key), f"unknown key{did_you_mean(key, types)}")
    values = {}
    for field in _fields(section):
        where = _join(path, field.name)
        if field.name in data:
            value = _value(types[field.name], data[field.name], where, env, problems)
            values[field.name] = _default(field, types[field.name]) if value is _REFUSED else value
        elif field.required:
            problems.add(where, "missing")
            values[field.name] = _default(field, types[field.name])
    return section(**values)


_REFUSED = object()


def _default(field: msgspec.structs.FieldInfo, kind: Any) -> Any:
    """The field's default; for a required field an empty value, which causes no further fault."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return typing.get_args(kind)[0]
    return (origin or kind)()


def _value(kind: Any, value: object, path: str, env: Mapping[str, str], problems: Problems) -> Any:
    if kind is Secret:
        return _secret(value, path, env, problems)
    if _is_section(kind):
        return read_section(kind, value, path, env, problems)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and _is_section(arguments[0]):
        return _sections(arguments[0], value, path, env, problems)
    if origin is dict and arguments[1] is Secret and isinstance(value, dict):
        return {key: _secret(item, f"{path}.{key}", env, problems) for key, item in value.items()}
    if origin is dict and isinstance(value, dict):
        if known := _words(arguments[0]):
            for key in sorted(value.keys() - known):
                problems.add(f"{path}.{key}", f"unknown key{did_you_mean(key, known)}; known are {', '.join(known)}")
        items = {key: _leaf(arguments[1], item, f"{path}.{key}", problems) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not _REFUSED}
    return _leaf(kind, value, path, problems)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Section)


def _sections(kind: Any, value: object, path: str, env: Mapping[str, str], problems: Problems) -> Any:
    if not isinstance(value, list):
        problems.add(path, f"expected a list of tables, written [[{path}]]")
        return _REFUSED
    return [read_section(kind, item, f"{path}[{index}]", env, problems) for index, item in enumerate(value)]


def _leaf(kind: Any, value: object, path: str, problems: Problems) -> Any:
    for where, part in _scalars(value, path):
        if isinstance(part, str) and _VARIABLE.search(part):
            problems.add(where, "${...} is read in secrets only")
            return _REFUSED
        if isinstance(part, float) and not math.isfinite(part):
            problems.add(where, f"expected a finite number, got {part}")
            return _REFUSED
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        known = _words(kind) if message.startswith("Invalid enum") else []
        among = f"; known are {', '.join(known)}" if known else ""
        problems.add(path + at.removesuffix("`"), message[0].lower() + message[1:] + among)
        return _REFUSED


def _words(kind: Any) -> list[str]:
    """The strings that a type allows, if it is a Literal or contains one; else none."""
    if typing.get_origin(kind) is typing.Literal:
        return [word for word in typing.get_args(kind) if isinstance(word, str)]
    return [word for part in typing.get_args(kind) for word in _words(part)]


def _scalars(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The path and value of everything in tables and lists."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _scalars(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(item, f"{path}[{index}]")
    else:
        yield path, value


def _secret(value: object, path: str, env: Mapping[str, str], problems: Problems) -> Any:
    if not isinstance(value, str):
        problems.add(path, f"expected `str`, got `{type(value).__name__}`")
        return Secret("")
    missing = [name for name in _VARIABLE.findall(value) if name not in env]
    if missing and problems.is_unused(path):
        return Secret(value)
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        what, are = ("variables", "are") if "," in names else ("variable", "is")
        problems.add(path, f"environment {what} {names} {are} not set")
        return Secret("")
    text = _VARIABLE.sub(lambda match: env[match[1]], value)
    if CONTROL.search(text):
        problems.add(path, "holds a line break or another control character")
        return Secret("")
    return Secret(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
