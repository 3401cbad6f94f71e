"""From a decoded document to the tree of the configuration: each value in its type, or a line that says why not.

A refused value is replaced by its default, so that reading goes on and every fault is found at once. It refuses
unknown keys and `${ENV}` outside secrets, and knows nothing of what the parts mean to each other.
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

from gateway.config import Secret, _Section

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Problems:
    """What is wrong, one line a path: what is refused already, or a part of it is, comes only once."""

    def __init__(self, secrets: Collection[str] | None = None) -> None:
        """`secrets`: paths of those that are used; others may name variables that are not set. None: all are."""
        self.lines: list[str] = []
        self._paths: set[str] = set()
        self._secrets = secrets
        self._unread: set[str] = set()

    def leave_unread(self, path: str) -> bool:
        """True: nobody uses this secret, and nothing that is said of its value counts."""
        if self._secrets is None or path in self._secrets:
            return False
        self._unread.add(path)
        return True

    def add(self, path: str, message: str) -> None:
        said = any(one == path or one.startswith((f"{path}[", f"{path}.")) for one in self._paths)
        if not said and path not in self._unread:
            self._paths.add(path)
            self.lines.append(f"{path}: {message}")

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def unless_known(self, path: str, what: str, name: str, known: Collection[str]) -> None:
        if name not in known:
            self.add(path, f"no {what} named {name!r}{meant(name, known)}")


def unreadable(name: str) -> str:
    """Why nobody could read or type a name; empty: it is sound."""
    if not name.strip():
        return "is empty"
    return "holds a line break or another control character" if CONTROL.search(name) else ""


def meant(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


@cache
def _types(section: Any) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


@cache
def _fields(section: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(section)  # works every annotation out anew: with thousands of keys, for seconds


def read_section(section: Any, data: object, path: str, env: Mapping[str, str], found: Problems) -> Any:
    types = _types(section)
    if not isinstance(data, Mapping):
        found.add(path, "expected a table")
        data = {}
    for key in sorted(data.keys() - types.keys()):
        found.add(_join(path, key), f"unknown key{meant(key, types)}")
    values = {}
    for field in _fields(section):
        where = _join(path, field.name)
        if field.name in data:
            read = _value(types[field.name], data[field.name], where, env, found)
            values[field.name] = _default(field, types[field.name]) if read is _REFUSED else read
        elif field.required:
            found.add(where, "missing")
            values[field.name] = _default(field, types[field.name])
    return section(**values)


_REFUSED = object()


def _default(field: msgspec.structs.FieldInfo, kind: Any) -> Any:
    """The field's own default; of a required one an empty value, which no rule complains about again."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return typing.get_args(kind)[0]
    return (origin or kind)()


def _value(kind: Any, value: object, path: str, env: Mapping[str, str], found: Problems) -> Any:
    if kind is Secret:
        return _secret(value, path, env, found)
    if _is_section(kind):
        return read_section(kind, value, path, env, found)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and _is_section(arguments[0]):
        return _sections(arguments[0], value, path, env, found)
    if origin is dict and arguments[1] is Secret and isinstance(value, dict):
        return {key: _secret(item, f"{path}.{key}", env, found) for key, item in value.items()}
    if origin is dict and isinstance(value, dict):
        if known := _words(arguments[0]):
            for key in sorted(value.keys() - known):
                found.add(f"{path}.{key}", f"unknown key{meant(key, known)}; known are {', '.join(known)}")
        read = {key: _leaf(arguments[1], item, f"{path}.{key}", found) for key, item in value.items()}
        return {key: item for key, item in read.items() if item is not _REFUSED}
    return _leaf(kind, value, path, found)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _Section)


def _sections(kind: Any, value: object, path: str, env: Mapping[str, str], found: Problems) -> Any:
    if not isinstance(value, list):
        found.add(path, f"expected a list of tables, written [[{path}]]")
        return _REFUSED
    return [read_section(kind, item, f"{path}[{index}]", env, found) for index, item in enumerate(value)]


def _leaf(kind: Any, value: object, path: str, found: Problems) -> Any:
    for where, part in _scalars(value, path):
        if isinstance(part, str) and _VARIABLE.search(part):
            found.add(where, "${...} is read in secrets only")
            return _REFUSED
        if isinstance(part, float) and not math.isfinite(part):
            found.add(where, f"expected a finite number, got {part}")
            return _REFUSED
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        known = _words(kind) if message.startswith("Invalid enum") else []
        among = f"; known are {', '.join(known)}" if known else ""
        found.add(path + at.removesuffix("`"), message[0].lower() + message[1:] + among)
        return _REFUSED


def _words(kind: Any) -> list[str]:
    """Of a type that is one of some words, or holds such."""
    if typing.get_origin(kind) is typing.Literal:
        return [word for word in typing.get_args(kind) if isinstance(word, str)]
    return [word for part in typing.get_args(kind) for word in _words(part)]


def _scalars(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _scalars(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(item, f"{path}[{index}]")
    else:
        yield path, value


def _secret(value: object, path: str, env: Mapping[str, str], found: Problems) -> Any:
    if not isinstance(value, str):
        found.add(path, f"expected `str`, got `{type(value).__name__}`")
        return Secret("")
    missing = [name for name in _VARIABLE.findall(value) if name not in env]
    if missing and found.leave_unread(path):
        return Secret(value)
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        what, are = ("variables", "are") if "," in names else ("variable", "is")
        found.add(path, f"environment {what} {names} {are} not set")
        return Secret("")
    text = _VARIABLE.sub(lambda match: env[match[1]], value)
    if CONTROL.search(text):
        found.add(path, "holds a line break or another control character")
        return Secret("")
    return Secret(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
