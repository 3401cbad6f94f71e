"""`python -m cache.bench`: what the cache's parts cost, and what they save compared with usual ones.

`eviction`: share of cost saved on Zipf and drifting traces. `affinity`: cached tokens of an agent workload over eight
deployments. `index`: search time and recall. `tenants`: a thousand of them in one structure. `latency`: key, exact
look-up and whole semantic look-up. `embedding`: the vector of one question, by each of `--embedders`. Times are CPU
time, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from cache.bench_eviction import bench_eviction
from cache.bench_index import bench_index, bench_tenants, cpu_beside, cpu_ms, near_real, trusting
from cache.entry import Entry
from cache.evaluate import load_embedder
from cache.key import Partition, exact_key
from cache.link import RedisLink
from cache.memory import MemoryStore
from cache.prefix import PrefixMap, RecentTokens, Warmth, chain, warmest, with_home
from cache.redis import RedisStore


def bench_affinity(turns: int = 6000, deployments: int = 8) -> dict[str, dict[str, float]]:
    """Share of prompt tokens cached, and load imbalance, of agents that talk to eight deployments; means of 5 seeds."""
    rows: dict[str, dict[str, Any]] = {
        "round robin": {"soft": False},
        "soft affinity": {"soft": True},
        "soft affinity, 4 workers": {"soft": True, "workers": 4},
        "without homes, 4 workers": {"soft": True, "workers": 4, "homes": False},
    }
    found = {}
    for name, row in rows.items():
        runs = [agents(turns, deployments, seed=seed, **row) for seed in range(5)]
        found[name] = {key: round(statistics.mean(run[key] for run in runs), 4) for key in runs[0]}
    return found


def agents(
    turns: int, deployments: int, *, soft: bool, workers: int = 1, homes: bool = True, talks: int = 64, seed: int = 0
) -> dict[str, float]:
    """Replay agents, each with a long system prompt and a conversation that grows by tool results. Any worker may get
    the next turn, and knows what it sent itself.

    A deployment keeps half as many conversations again as its share of them, the most recent ones.
    """
    rng = random.Random(seed)
    names = [f"d{n}" for n in range(deployments)]
    known = [PrefixMap(warmths=dict.fromkeys(names, Warmth(step_tokens=16))) for _ in range(workers)]
    loads = [[RecentTokens() for _ in names] for _ in range(workers)]
    kept: dict[str, OrderedDict[int, int]] = {name: OrderedDict() for name in names}
    served = dict.fromkeys(names, 0.0)
    active: list[tuple[int, list[bytes], list[int]]] = []
    prompt = cached = 0
    for turn in range(turns):
        if len(active) < talks or rng.random() < 0.01:
            system = b"system %d" % rng.randrange(4)
            active = [*active, (turn, [system, b"%d" % turn], [4000, 2000 + rng.randrange(2000)])][-talks:]
        talk, pieces, tokens = rng.choice(active)
        links = chain("t", pieces, tokens)
        now_s, place, worker = turn / 20, turn % deployments, rng.randrange(workers)
        seen, recent = known[worker], loads[worker]
        if soft:
            shares = [seen.cached_share(links, name, now_s=now_s) for name in names]
            if homes:
                shares = with_home(shares, names, dict.fromkeys(names, 1.0), links[1][0])
            place = warmest(shares, [one.at(now_s) for one in recent], links[-1][1])[0]
        name = names[place]
        hit = kept[name].pop(talk, 0)
        kept[name][talk] = links[-1][1]
        if len(kept[name]) > 1.5 * talks / deployments:
            kept[name].popitem(last=False)
        prompt, cached = prompt + links[-1][1], cached + hit
        recent[place].add(links[-1][1], now_s)
        served[name] += links[-1][1]
        seen.record(links, name, now_s=now_s, cached_tokens=hit)
        pieces.append(b"result %d" % turn)
        tokens.append(100 + rng.randrange(200))
    imbalance = max(served.values()) / statistics.mean(served.values())
    return {"cached_share": round(cached / prompt, 4), "imbalance": round(imbalance, 4)}


async def many(work: Callable[[int], Any], times: int) -> float:
    """Median CPU time of one awaited call, in microseconds."""
    spent = []
    for n in range(times):
        began = time.process_time_ns()
        await work(n)
        spent.append(time.process_time_ns() - began)
    return round(statistics.median(spent) / 1e3, 2)


async def redis_get(url: str, key: bytes, times: int = 3000) -> dict[str, float]:
    """A whole answer of 4,000 bytes from Redis, and in turn with it a bare GET of as many: CPU time of this process
    and time by the clock, medians and the fastest tenth.
    """
    link = RedisLink(url, timeout_s=1.0)
    store = RedisStore(link, prefix="hg:bench:")
    await store.put(key, Entry("bench", "chat", b"x" * 4000, "m", "", time.time(), 3600.0, 0.01, tenant="t"))
    await link.client.set("hg:bench:bare", b"x" * 4000)

    async def get() -> None:
        assert await store.get(key, tenant="t", now_s=time.time()) is not None

    async def bare() -> None:
        assert await link.client.get("hg:bench:bare")

    works = {"exact_get_redis": get, "bare_get_redis": bare}
    spent: dict[str, list[tuple[int, int]]] = {name: [] for name in works}
    for _ in range(times):
        for name, work in works.items():
            began, began_cpu = time.perf_counter_ns(), time.process_time_ns()
            await work()
            spent[name].append((time.perf_counter_ns() - began, time.process_time_ns() - began_cpu))
    await link.client.delete("hg:bench:bare")
    await store.delete_tenant("t")
    await store.close()
    await link.close()
    figures = {}
    for name, pairs in spent.items():
        for clock, taken in zip(("by_clock", "cpu"), zip(*pairs, strict=True), strict=True):
            ranked = sorted(taken)
            figures[f"{name}_{clock}_us"] = ranked[times // 2] / 1e3
            figures[f"{name}_{clock}_p10_us"] = ranked[times // 10] / 1e3
    return {name: round(figure, 1) for name, figure in figures.items()}


def bench_latency(entries: int = 1000, dimension: int = 384, redis_url: str = "") -> dict[str, float]:
    """Microseconds of CPU of the parts of a look-up, and of the whole without the embedding."""
    words = [
        "what", "is", "the", "capital", "city", "of", "a", "country", "that", "borders", "on", "the", "sea", "and",
        "has", "a", "large", "harbour",
    ]  # fmt: skip
    body = {"model": "auto", "messages": [{"role": "user", "content": " ".join(words * 4)}], "max_tokens": 99}
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    store = MemoryStore(1 << 28)
    cache, vectors = trusting(store, dimension, entries), near_real(entries, dimension)
    key = exact_key(tenant="t", scope="s", surface="chat", body=fields)

    async def fill() -> None:
        for n in range(entries):
            entry = Entry(str(n), "chat", b"{}" * 200, "m", "", 0.0, 1e9, 0.01, tenant="t")
            name = key if n == 0 else b"%d" % n
            await store.put(name, entry)
            text = " ".join(random.Random(n).sample(words, 16))
            cache.record(Partition(b"p", text), vectors[n], entry, key=name)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(fill())
    text = " ".join(words[:16])

    def ask(n: int) -> Any:
        return cache.look_up(Partition(b"p", text), vectors[n % entries], tenant="t", now_s=1.0)

    figures = {
        "request_bytes": float(len(msgspec.json.encode(body))),
        "exact_key_us": round(
            1e3 * cpu_ms(lambda _: exact_key(tenant="t", scope="s", surface="chat", body=fields), 3000), 2
        ),
        "exact_get_us": loop.run_until_complete(many(lambda _: store.get(key, tenant="t", now_s=1.0), 3000)),
        "semantic_look_up_us": loop.run_until_complete(many(ask, 1000)),
    }
    if redis_url:
        figures |= loop.run_until_complete(redis_get(redis_url, key))
    loop.close()
    return figures


def bench_embedding(specs: list[str], times: int = 500) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU for the vector of a question of 16 tokens, embedders in turn so that all meet the same
    machine: median and fastest tenth.
    """
    text = "how do i change the delivery address of my order before it ships now"
    opened = {spec: load_embedder(spec)[0] for spec in specs}
    works = {spec: (lambda _, embed=embed: embed(text)) for spec, embed in opened.items()}
    spent = {spec: sorted(taken) for spec, taken in cpu_beside(works, times).items()}
    return {
        spec: {"p50_ms": round(taken[times // 2], 3), "p10_ms": round(taken[times // 10], 3)}
        for spec, taken in spent.items()
    }


def main() -> None:
    """Run the benchmarks named on the command line, all of them when none is."""
    parser = argparse.ArgumentParser("python -m cache.bench", description=__doc__)
    every = ("eviction", "affinity", "index", "tenants", "latency", "embedding")
    parser.add_argument("names", nargs="*", choices=[*every, []], help="all when none is named")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="vectors of `index`")
    parser.add_argument("--redis", default="", help="URL of a Redis for `latency`")
    parser.add_argument("--embedders", nargs="+", default=[], help="of `embedding`: native:FOLDER, onnx:FOLDER, ...")
    args = parser.parse_args()
    benches: dict[str, Callable[[], object]] = {
        "eviction": bench_eviction,
        "affinity": bench_affinity,
        "index": lambda: bench_index(tuple(args.sizes)),
        "tenants": bench_tenants,
        "latency": lambda: bench_latency(redis_url=args.redis),
        "embedding": lambda: bench_embedding(args.embedders),
    }
    json.dump({name: benches[name]() for name in args.names or every}, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
