"""The limits and choices of one engine, by the names that a provider's `options` and the command line use.

No torch here, so that a configuration can be checked where none is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from local_models import folder_of
from local_models.settings import Setting


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of one engine. Memory is what is stated here, never a share of the machine's."""

    kv_tokens: int = 32_768
    block_tokens: int = 64
    step_tokens: int = 512
    most_running: int = 64
    most_waiting: int = 1024
    dtype: str = "auto"
    int8: bool = False
    """Quantize the weights while loading; where `native` computes, keys and values are kept in eight bits as well."""
    invariant: bool = True
    """An answer's bits never depend on its batch; False: where torch computes, a lone float32 stream is faster, and on
    a GPU prompts are."""
    native: bool = True
    """Compute by `local_models.native` where it can be had."""
    device: str = "cpu"
    """`cpu`, `cuda` (as torch names it: `cuda:1` too), or `auto`: CUDA where torch finds it. No figure was measured on
    a GPU yet, so it is not the default."""
    share_prefixes: bool = True
    eviction_alpha: float | None = 1.0
    """Marconi's weight of computation saved per byte; None: least recently used."""
    copy_while_free: float = 0.5
    """A shared prefix is copied, not gathered, while this share of the blocks is free."""
    tier_memory_mb: int = 0
    """Megabytes of evicted keys and values that are kept in memory beside the pool, for conversations that continue."""
    tier_disk_mb: int = 0
    """Megabytes of keys and values that leave this memory and are kept in an unnamed file."""
    tier_folder: str | None = None
    """Where that file lies; None: the system's folder for temporary files."""
    draft_tokens: int = 0
    """Most tokens guessed ahead for one sequence; 0: no guessing."""
    draft_model: str | None = None
    """Folder of a smaller model with the same tokenizer, which guesses; None: the text's own n-grams do."""
    draft_budget: int = 64
    """Most guesses checked in one step, all sequences together."""
    settings: str = "given"
    """`given`: as said here; `auto`: chunk, guesses and shared prefixes are looked for (`local_models.tuning`)."""
    settings_folder: str | None = None
    """Where runs are recorded for that, a file a model; None: beside the server's socket."""
    settings_int8: bool = False
    """Whether eight bits may be chosen too, which can change answers."""


def setting_of(options: EngineOptions) -> Setting:
    """The part of the options that can be looked for."""
    return Setting(options.int8, options.step_tokens, options.draft_tokens, options.share_prefixes)


def with_setting(options: EngineOptions, setting: Setting) -> EngineOptions:
    """The options with that part replaced."""
    return replace(
        options, int8=setting.int8, step_tokens=setting.step_tokens, draft_tokens=setting.draft_tokens,
        share_prefixes=setting.share_prefixes,
    )  # fmt: skip


ENGINE_OPTIONS = {
    "kv_tokens": "tokens of prompts and answers whose keys and values fit in memory at once",
    "step_tokens": "most tokens computed in one step",
    "most_running": "most answers written at once",
    "most_waiting": "most requests that wait; one more is refused",
    "dtype": "auto, float32, bfloat16 or float16",
    "int8": "quantize the weights to eight bits while loading",
    "invariant": "an answer never depends on what else is computed beside it",
    "native": "compute by kernels in C where the machine can build them; otherwise torch computes",
    "device": "cpu, cuda, cuda:1, or auto: CUDA where torch finds it",
    "draft_tokens": "most tokens guessed ahead for one answer; 0: none",
    "draft_model": "folder of a smaller model with the same tokenizer, which guesses; none: phrases of the text do",
    "draft_budget": "most guesses checked in one step, of all answers together",
    "tier_memory_mb": "memory beside the pool for conversations that come back",
    "tier_disk_mb": "disk for those that leave that memory",
    "tier_folder": "folder of that disk space; none: the system's for temporary files",
    "settings": "given: as said here; auto: step_tokens, draft_tokens and shared prefixes are tuned while it runs",
    "settings_folder": "folder in which the runs that tune are recorded",
    "settings_int8": "tuning may choose eight bits, which can change answers",
}
"""Those that an operator may set, and what each means."""
SERVER_OPTIONS = ("models", "threads", *ENGINE_OPTIONS)
_WORDS = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "settings": ("given", "auto"),
    "device": ("auto", "cpu", "cuda", "cuda:0, cuda:1 ..."),
}
_DEFAULT = EngineOptions()
_MAY_BE_ZERO = ("draft_tokens", "draft_budget", "tier_memory_mb", "tier_disk_mb", "most_waiting")


def faults(options: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Name and fault of every option that the server would not take; None is as if it were not there."""
    for name, value in options.items():
        if name not in SERVER_OPTIONS:
            yield name, f"unknown; known are {', '.join(SERVER_OPTIONS)}"
        elif value is not None and (fault := _fault(name, value)):
            yield name, fault


def no_models(options: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Option and fault of every folder that holds no model."""
    named, draft = options.get("models") or {}, options.get("draft_model")
    folders = {f"models.{name}": folder for name, folder in named.items()} if isinstance(named, Mapping) else {}
    for option, folder in {**folders, **({"draft_model": draft} if draft else {})}.items():
        if isinstance(folder, str) and not (folder_of(folder) / "config.json").is_file():
            yield option, f"{folder}: there is no model (config.json) in it"


def _fault(name: str, value: object) -> str:
    if name == "models":
        is_named = isinstance(value, Mapping) and all(isinstance(part, str) for pair in value.items() for part in pair)
        return "" if is_named else "must be names with a folder each"
    default = 1 if name == "threads" else getattr(_DEFAULT, name)
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "must be true or false"
    if isinstance(default, int):
        least = 0 if name in _MAY_BE_ZERO else 1
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return "" if is_count else f"must be a whole number of at least {least}"
    if not isinstance(value, str):
        return "must be text"
    words = _WORDS.get(name)
    is_known = words is None or value in words or (name == "device" and re.fullmatch(r"cuda:\d+", value))
    return "" if is_known or words is None else f"{value!r} is none of {', '.join(words)}"
