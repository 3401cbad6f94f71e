"""What the documents name exists: commands and their options, links, settings with their defaults, and log messages."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.main

from cascade.plan import DEFAULT_ACCEPT_AT
from gateway.__main__ import app
from gateway.config.types import Config, Secret
from tests.command import mount_once

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CHANGELOG.md", "tests/bench/README.md", "routers/weights/README.md",
             *(f"deploy/{name}.md" for name in ("RUNBOOK", "THREATS", "CLIENTS")))  # fmt: skip
EXAMPLE = ROOT / "deploy" / "headgate.example.toml"
SHELL = ("curl", "headgate", "redis-cli", "sqlite3", "openssl", "df", "nc", "systemctl",
         "GET", "POST", "PATCH", "DELETE", "authorization:")  # fmt: skip


def text(document: str) -> str:
    return (ROOT / document).read_text()


def code(document: str) -> list[str]:
    """Text in backticks, in a console block after its prompt, or in an indented block."""
    found = re.findall(r"^\$ (.*)$", text(document), re.M) + re.findall(r"^    (\S.*)$", text(document), re.M)
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.M | re.S)
    return found + [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", prose)]


def commands(program: str) -> list[tuple[str, str]]:
    """Each command line in the documents that begins with this program, with its document."""
    found = {(line.partition(" #")[0].strip(), document) for document in DOCUMENTS for line in code(document)}
    return sorted((line, document) for line, document in found if line.startswith(program + " "))


def options(line: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)


@pytest.mark.parametrize(("line", "document"), commands("headgate"))
def test_each_headgate_command_exists(line: str, document: str) -> None:
    """So does every option that a document gives it, and each alternative to its last word."""
    mount_once()
    command: Any = typer.main.get_command(app)
    first, *others = line.split(" | ")
    within = command.commands
    for word in first.split()[1:]:
        siblings = getattr(command, "commands", None)
        if siblings is None or word.startswith("-"):
            break
        assert word in siblings, (word, document)
        within, command = siblings, siblings[word]
    assert set(others) <= within.keys(), document
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert set(options(line)) <= known, document


@pytest.mark.parametrize(("line", "document"), commands("python -m"))
def test_each_module_that_is_run_exists(line: str, document: str) -> None:
    """So does every option that a document gives it."""
    name = line.split()[2]
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None, (name, document)
    folder = Path(spec.origin).parent
    sources = folder.glob("*.py") if spec.submodule_search_locations else [Path(spec.origin)]
    source = "\n".join(path.read_text() for path in sources)
    for option in options(line):
        assert f'"{option}"' in source or f"{option[2:].replace('-', '_')}:" in source, (option, document)


@pytest.mark.parametrize(("line", "document"), commands("make"))
def test_each_target_exists(line: str, document: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", text("Makefile"), re.M), document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_leads_to_a_file(document: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text(document)):
        assert ((ROOT / document).parent / link).exists(), link


def messages() -> list[str]:
    """The texts in the runbook that a log or an answer contains: those with three words and more that are no command.
    """
    told = [one for one in code("deploy/RUNBOOK.md") if not one.startswith(SHELL) and '"' not in one]
    return sorted({one for one in told if len(one.split()) >= 3 and "=" not in one})


@pytest.mark.parametrize("message", messages())
def test_each_message_of_the_runbook_is_in_the_code(message: str) -> None:
    """The text must match word by word, except for `...`, names in capitals and numbers, because operators search logs
    for it.
    """
    source = "\n".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py")).replace("`", "")
    for part in re.split(r"\.\.\.|\b[A-Z_]+\b", message):
        assert part.strip(" :,") in source, part


def test_the_runbook_has_messages() -> None:
    """Otherwise the test above would check nothing."""
    assert len(messages()) >= 15


def sections() -> dict[str, type[msgspec.Struct]]:
    """Each table of the configuration by its path."""
    found: dict[str, type[msgspec.Struct]] = {}

    def walk(section: type[msgspec.Struct], path: str) -> None:
        found[path] = section
        for name, kind in typing.get_type_hints(section).items():
            inner = next((a for a in (kind, *typing.get_args(kind)) if hasattr(a, "__struct_fields__")), None)
            if inner is not None:
                walk(inner, f"{path}.{name}".lstrip("."))

    walk(Config, "")
    return found


def entries() -> dict[tuple[str, str], tuple[Any, str]]:
    """The example's value and complete comment for each key, at its first mention."""
    found: dict[tuple[str, str], tuple[Any, str]] = {}
    section, key = "", ("", "")
    for line in EXAMPLE.read_text().splitlines():
        if table := re.match(r"\[+([\w.]+)\]+", line):
            section, key = table[1], ("", "")
        elif pair := re.match(r"(\w+) = (.*?)(?:\s+#(.*))?$", line):
            key = (section, pair[1])
            if pair[3] and key not in found:
                value = pair[2] if pair[2] != "[" else "[]"  # the rules, over several lines
                found[key] = (tomllib.loads(f"x = {value}")["x"], pair[3])
            elif key in found:
                key = ("", "")
        elif key in found and (more := re.match(r"\s+#(.*)", line)):
            found[key] = (found[key][0], found[key][1] + more[1])
    return found


NOTHING: tuple[object, ...] = (None, "", 0, False, [], {})
_SAID = re.compile(r"default:? (?:none|unset|unlimited|unknown|never|not known|as|equal|only|true for|the|auto)\b")


@pytest.mark.parametrize(("section", "key"), sorted(entries()))
def test_the_example_states_each_default(section: str, key: str) -> None:
    """Its value is the default, or its comment states the default; a number or word in the comment must be the code's.
    """
    value, said = entries()[section, key]
    field = next(one for one in msgspec.structs.fields(sections()[section]) if one.name == key)
    if field.required or key == "options":  # the defaults of a local engine's options are in its own command's help
        return
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if key == "accept_at":  # None stands for another number in each kind of cascade
        default = DEFAULT_ACCEPT_AT
    if told := re.search(r'default:? ("[\w-]*"|-?[\d.]*\d|true|false)(?! for)', said):
        assert tomllib.loads(f"x = {told[1]}")["x"] == default
    elif marked := re.search(r'([\w.]+)[^\w.;,:]*\(default\)', said):
        assert marked[1] in (f"{default}", f"{default:g}" if isinstance(default, float) else "") or (
            marked[1] == "empty" and default in NOTHING)
    elif _SAID.search(said) or "required by" in said or re.search(r"\bempty:", said) or "the default" in said:
        assert default in NOTHING or default == value
    else:
        assert value == default, f"{section}.{key}: the default {default!r} is not told"


def test_the_example_lists_every_secret() -> None:
    """Only secrets may name environment variables."""
    told = re.search(r"^# Secrets: (.*(?:\n#  .*)?)\.$", EXAMPLE.read_text(), re.M)
    assert told is not None
    secret = {f"{path}.{name}".lstrip(".") for path, section in sections().items()
              for name, kind in typing.get_type_hints(section).items() if Secret in (kind, *typing.get_args(kind))}
    assert set(re.split(r"[,\s#]+", told[1])) == secret
