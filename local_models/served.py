"""A model with a name, as the server holds it: its worker, its sampling default, its counters and metrics."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from local_models import openai_wire as wire
from local_models.engine import Engine, EngineOptions
from local_models.errors import LocalModelError, RequestRefused
from local_models.options import setting_of, with_setting
from local_models.request import Request, Usage
from local_models.shape import read_object, read_shape
from local_models.tuning import Tuner
from local_models.worker import Worker


class ServedModel:
    """One model by its name: its worker and what its folder says of sampling."""

    def __init__(self, name: str, folder: Path, options: EngineOptions) -> None:
        self.name = name
        is_tuned = options.settings == "auto"
        self.worker = Worker(tuned(name, folder, options) if is_tuned else Engine.load(folder, options))
        self.codec = self.worker.engine.codec
        self.temperature = _default_temperature(folder)
        self.requests = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    def request(self, wanted: wire.GenerationParams, prompt: list[int], choice: int) -> Request:
        """The engine's request for one choice; each has its own seed."""
        if not prompt:
            raise RequestRefused("the prompt is empty", param="messages")
        room = self.worker.engine.scheduler.capacity_tokens - len(prompt)
        max_tokens = wanted.max_tokens if wanted.max_tokens is not None else max(1, room)
        sampling = wanted.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + choice)
        deadline_s = None if wanted.deadline_s is None else time.monotonic() + wanted.deadline_s
        return Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(prompt),
            max_tokens=max_tokens,
            sampling=sampling,
            stop=wanted.stop,
            top_logprobs=wanted.top_logprobs,
            ignore_end=wanted.ignore_end,
            deadline_s=deadline_s,
            grammar=wanted.grammar,
        )

    def count(self, usage: Usage) -> None:
        """Add a finished answer to the totals of /metrics."""
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.output_tokens += usage.output_tokens


def tuned(name: str, folder: Path, options: EngineOptions) -> Engine:
    """An engine that looks for its settings; what it records lies in a file by its name."""
    if options.settings_folder is None:
        raise LocalModelError('settings = "auto" needs settings_folder, where runs are recorded')
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    file = Path(options.settings_folder) / f"{safe}.settings.jsonl"
    tuner = Tuner.start(read_shape(folder), setting_of(options), file, int8_too=options.settings_int8)
    engine = Engine.load(folder, with_setting(options, tuner.setting))
    engine.tuner = tuner
    return engine


def metrics_page(models: dict[str, ServedModel]) -> str:
    """Prometheus text of all models."""
    lines = []
    for name, kind, meaning, read in _METRICS:
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [f'{name}{{model="{model}"}} {read(served)}' for model, served in models.items()]
    return "\n".join(lines) + "\n"


def _kv_use(served: ServedModel) -> float:
    blocks = served.worker.engine.blocks
    return 1.0 - (blocks.free + blocks.cached) / blocks.count if blocks.count else 0.0


def _kv_cached(served: ServedModel) -> float:
    blocks = served.worker.engine.blocks
    return blocks.cached / blocks.count if blocks.count else 0.0


def _tiers(served: ServedModel) -> tuple[int, int, int, int]:
    offload = served.worker.engine.offload
    if offload is None:
        return 0, 0, 0, 0
    return offload.tiers.saved, offload.tiers.restored, offload.tiers.in_memory, offload.tiers.on_disk


def _default_temperature(folder: Path) -> float:
    """0 when the folder asks for greedy decoding; its own temperature, else OpenAI's 1."""
    path = folder / "generation_config.json"
    generation = read_object(path) if path.is_file() else {}
    if generation.get("do_sample") is False:
        return 0.0
    return float(generation.get("temperature") or 1.0)


_METRICS: list[tuple[str, str, str, Callable[[ServedModel], float]]] = [
    ("local_requests_waiting", "gauge", "Requests in line.", lambda s: len(s.worker.engine.scheduler.waiting)),
    ("local_requests_running", "gauge", "Requests in the batch.", lambda s: len(s.worker.engine.scheduler.running)),
    ("local_kv_usage_ratio", "gauge", "Share of key-value blocks in use.", _kv_use),
    ("local_kv_cached_ratio", "gauge", "Share kept for later prompts.", _kv_cached),
    ("local_prefix_asked_tokens_total", "counter", "Prompt tokens.", lambda s: s.worker.engine.blocks.asked_tokens),
    ("local_prefix_hit_tokens_total", "counter", "Of them cached.", lambda s: s.worker.engine.blocks.hit_tokens),
    ("local_tier_saved_blocks_total", "counter", "Evicted blocks kept elsewhere.", lambda s: _tiers(s)[0]),
    ("local_tier_restored_blocks_total", "counter", "Of them, given back.", lambda s: _tiers(s)[1]),
    ("local_tier_memory_blocks", "gauge", "Kept in memory.", lambda s: _tiers(s)[2]),
    ("local_tier_disk_blocks", "gauge", "Kept in the file.", lambda s: _tiers(s)[3]),
    ("local_preemptions_total", "counter", "Sequences put aside.", lambda s: s.worker.engine.scheduler.preempted),
    ("local_requests_total", "counter", "Answers given.", lambda s: s.requests),
    ("local_prompt_tokens_total", "counter", "Prompt tokens of given answers.", lambda s: s.prompt_tokens),
    ("local_output_tokens_total", "counter", "Output tokens of given answers.", lambda s: s.output_tokens),
    ("local_drafted_tokens_total", "counter", "Tokens guessed.", lambda s: s.worker.engine.drafted_tokens),
    ("local_accepted_tokens_total", "counter", "Guesses kept.", lambda s: s.worker.engine.accepted_tokens),
    (
        "local_acceptable_tokens_total", "counter",
        "What the best rule of acceptance would have kept of them, on average.",
        lambda s: s.worker.engine.acceptable_tokens,
    ),
    ("local_busy_seconds_total", "counter", "Time spent computing.", lambda s: s.worker.engine.busy_s),
    ("local_audits_total", "counter", "Audits of an idle engine's blocks.", lambda s: s.worker.audits),
    ("local_audits_failed_total", "counter", "Of them with a fault.", lambda s: s.worker.audits_failed),
    ("local_engine_steps_total", "counter", "Steps computed.", lambda s: s.worker.engine.steps),
]  # fmt: skip
