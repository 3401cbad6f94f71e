"""Blocks that left the pool: kept within their limits, restored unchanged, and useless to any other tenant."""

import random
from pathlib import Path

import pytest
import torch

from local_models.engine import Engine, EngineOptions
from local_models.request import Request
from local_models.tiers import Tiers, name_of
from tests.local_models.checkpoints import Answer, codec, decoder, engine, greedy, prompts, run


def block(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((2, 2, 1, 4, 3), float(number), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_restored_from_either_tier(dtype: torch.dtype, tmp_path: Path) -> None:
    """Memory comes first, then the file, whose name is removed; beyond both a block is dropped."""
    tiers = Tiers(2, 3, tmp_path)
    names = [name_of(b"", [number]) for number in range(7)]
    for number, name in enumerate(names):
        tiers.keep(name, block(number, dtype))
    assert (tiers.in_memory, tiers.on_disk) == (2, 3)
    for number, name in enumerate(names):
        found = tiers.fetch([name])
        assert [torch.equal(one, block(number, dtype)) for one in found] == ([True] if number >= 2 else [])
    assert not list(tmp_path.iterdir())


def test_only_a_continuous_beginning_is_restored() -> None:
    """A block without its predecessor is useless."""
    tiers = Tiers(8)
    first, second, third = (name_of(b"", [number]) for number in range(3))
    for name in (first, third):
        tiers.keep(name, block(0))
    assert len(tiers.fetch([first, second, third])) == 1


def test_the_end_of_a_conversation_is_dropped_before_its_beginning() -> None:
    """Of blocks requested together the last one is dropped first."""
    tiers = Tiers(3)
    names = [name_of(b"", [number]) for number in range(3)]
    for name in names:
        tiers.keep(name, block(0))
    tiers.fetch(names)
    tiers.keep(name_of(b"", [9]), block(9))
    assert len(tiers.fetch(names)) == 2


def test_a_blocks_name_includes_all_earlier_tokens_and_the_salt() -> None:
    """Equal tokens after another beginning, or with another salt, are another block."""
    assert (
        len({name_of(name_of(b"a", [1]), [2]), name_of(name_of(b"b", [1]), [2]), name_of(name_of(b"a", [3]), [2])}) == 3
    )


def talk(engine_: Engine, turns: int, seed: int = 1) -> list[Answer]:
    """Four alternating conversations that are long enough to evict each other from the pool."""
    texts = prompts(4, seed, longest=60)
    answers = []
    rng = random.Random(seed)
    for turn in range(turns):
        for who in range(4):
            texts[who] = texts[who] + [rng.randrange(2, 96) for _ in range(40)]
            answer = run(engine_, [greedy(f"{turn} {who}", texts[who], 12, salt=str(who))])[f"{turn} {who}"]
            texts[who] = texts[who] + list(answer.ids)
            answers.append(answer)
    return answers


@pytest.mark.parametrize(("memory_mb", "disk_mb"), [(1, 0), (0, 1)])
def test_a_conversation_continues_from_the_tiers(memory_mb: int, disk_mb: int) -> None:
    """With a pool for one and a half conversations, four alternating ones find their keys again, with the same bits."""
    plain = talk(engine(kv_tokens=320), 4)
    tiered_engine = engine(kv_tokens=320, tier_memory_mb=memory_mb, tier_disk_mb=disk_mb)
    tiered = talk(tiered_engine, 4)
    assert [a.ids for a in tiered] == [a.ids for a in plain]
    assert [a.logprobs for a in tiered] == [a.logprobs for a in plain]
    cached = [sum(a.last.usage.cached_tokens for a in answers) for answers in (plain, tiered)]
    assert cached[1] > 2 * cached[0]
    assert tiered_engine.offload is not None and tiered_engine.offload.tiers.restored > 0


def test_the_tiers_survive_preemption() -> None:
    """With little memory and many sequences with shared beginnings the answers are those without tiers, and no block is
    lost.
    """
    rng = random.Random(3)
    beginnings = prompts(3, 5, longest=60)
    asked = [
        Request(str(at), tuple(rng.choice(beginnings) + rng.choice(beginnings) + prompts(1, at, longest=20)[0]),
                rng.randint(1, 20), ignore_end=True, top_logprobs=0)
        for at in range(40)
    ]  # fmt: skip
    said = []
    for megabytes in (0, 1):
        small = Engine(
            decoder(), codec(), EngineOptions(kv_tokens=384, tier_memory_mb=megabytes), predict=lambda request: 1
        )
        said.append(run(small, asked))
        small.blocks.forget()
        assert small.blocks.free == small.blocks.count
    for name in said[0]:
        assert said[0][name].ids == said[1][name].ids and said[0][name].logprobs == said[1][name].logprobs
