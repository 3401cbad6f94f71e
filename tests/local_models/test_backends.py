"""Profiles of inference engines with an OpenAI API."""

import httpx
import pytest

from local_models.backends import PROFILES, Load
from local_models.errors import RequestRefused

VLLM = """
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen"} 3.0
vllm:num_requests_waiting{engine="1",model_name="qwen"} 1.0
vllm:num_requests_waiting{engine="0",model_name="other"} 9.0
vllm:num_requests_running{engine="0",model_name="qwen"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="qwen"} 0.25
vllm:prefix_cache_queries_total{model_name="qwen"} 200.0
vllm:prefix_cache_hits_total{model_name="qwen"} 50.0
vllm:broken{model_name="qwen"} much
"""
OLD_VLLM = 'vllm:gpu_cache_usage_perc{model_name="qwen"} 0.75\n'
SGLANG = """
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:num_running_reqs{model_name="m"} 7.0
sglang:token_usage{model_name="m"} 0.28
sglang:cache_hit_rate{model_name="m"} 0.5
"""
LLAMA = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n"


@pytest.mark.parametrize(
    ("engine", "page", "load"),
    [
        ("vllm", VLLM, Load(4.0, 5.0, 0.375, 0.25)),
        ("vllm", OLD_VLLM, Load(kv_use=0.75)),
        ("sglang", SGLANG, Load(2.0, 7.0, 0.28, 0.5)),
        ("llama-server", LLAMA, Load(4.0, 1.0, None, None)),
        ("ray-serve", "", Load()),
        ("transformers-serve", "<html>", Load()),
    ],
)
def test_load_is_read_from_each_engines_page(engine: str, page: str, load: Load) -> None:
    """Ranks are summed, ratios averaged, other models and broken lines skipped, and a missing figure is None."""
    model = {"vllm": "qwen", "sglang": "m"}.get(engine)
    assert PROFILES[engine].read_load(page, model) == load


async def test_our_own_page_is_read(http: httpx.AsyncClient) -> None:
    """The profile of our own server reads the page that the server writes."""
    profile = PROFILES["headgate"]
    assert (await http.get(profile.health_path)).status_code == 200
    page = (await http.get(profile.metrics_path or "")).text
    load = profile.read_load(page, "tiny-small")
    assert load.waiting == load.running == 0 and load.kv_use == 0


def test_a_field_that_an_engine_ignores_is_refused() -> None:
    """transformers serve accepts stop and n and ignores them; their defaults are accepted."""
    profile = PROFILES["transformers-serve"]
    assert profile.adapt({"n": 1, "stop": None, "logprobs": False}) == {"n": 1, "stop": None, "logprobs": False}
    with pytest.raises(RequestRefused, match="stop"):
        profile.adapt({"stop": ["x"]})
    with pytest.raises(RequestRefused, match="n"):
        profile.adapt({"n": 2})


def test_a_field_is_sent_by_the_engines_own_name() -> None:
    """llama-server's limit is called max_tokens; the caller's body isn't changed."""
    body = {"max_completion_tokens": 5, "messages": []}
    assert PROFILES["llama-server"].adapt(body) == {"max_tokens": 5, "messages": []}
    assert body == {"max_completion_tokens": 5, "messages": []}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_a_health_path(name: str) -> None:
    """Its metrics page has named figures, or there is none."""
    profile = PROFILES[name]
    assert profile.health_path.startswith("/")
    assert (profile.metrics_path is None) == (not profile.waiting)
