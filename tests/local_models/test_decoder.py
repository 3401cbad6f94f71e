"""The forward pass equals transformers' own, for every family and option."""

from pathlib import Path

import pytest
import torch

from local_models.engine import Engine, EngineOptions
from tests.local_models.checkpoints import VARIANTS, generated, greedy, prompts, run, write_folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_answers_equal_transformers(variant: str, tmp_path: Path) -> None:
    """The tokens are those of `generate`, for prompts that are served together in chunks and are longer than the
    window.
    """
    model = write_folder(variant, tmp_path)
    engine = Engine.load(tmp_path, EngineOptions(kv_tokens=2048, step_tokens=48, block_tokens=16))
    asked = prompts(8, seed=len(variant))
    answers = run(engine, [greedy(str(at), prompt, 20) for at, prompt in enumerate(asked)])
    for at, prompt in enumerate(asked):
        assert list(answers[str(at)].ids) == generated(model, prompt, 20)


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3-wide-heads", "mistral-window"])
def test_scores_equal_transformers(variant: str, tmp_path: Path) -> None:
    """All log-probabilities agree up to rounding."""
    model = write_folder(variant, tmp_path)
    engine = Engine.load(tmp_path, EngineOptions(kv_tokens=1024))
    prompt = prompts(1, seed=3, longest=60)[0]
    answer = run(engine, [greedy("a", prompt, 12)])["a"]
    with torch.inference_mode():
        scores = model(torch.tensor([[*prompt, *answer.ids]])).logits[0, len(prompt) - 1 : -1]
    expected = scores.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=2e-5, rtol=2e-5)


def test_embeddings_are_the_mean_hidden_state(tmp_path: Path) -> None:
    """The vector is the normalised mean of transformers' last hidden states."""
    model = write_folder("qwen3", tmp_path)
    engine = Engine.load(tmp_path, EngineOptions(kv_tokens=256))
    ids = prompts(1, seed=1)[0]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    torch.testing.assert_close(engine.embed(ids), hidden / hidden.norm(), atol=1e-5, rtol=1e-5)
