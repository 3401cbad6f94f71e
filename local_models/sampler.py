"""From a row of scores to a token, by each request's own rules; a row never looks at another row.

Randomness is a function of the request's seed and the token's position alone, so an answer does not change
with its batch mates, nor when a sequence is put aside and computed again. Refuses scores that are not
numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from local_models.request import Sampling, TokenLogprob

Scores = npt.NDArray[np.float32]


NOT_NUMBERS = "the model's scores are not numbers"


class NotNumbers(ValueError):
    """The model gave NaN or only minus infinity."""


def choose(scores: Scores, sampling: Sampling, seed: int, position: int, said: Counter[int]) -> int:
    """The next token of one request; `said` counts the tokens of its answer so far."""
    if sampling.plain_greedy:
        return int(scores.argmax())
    scores = penalised(scores, sampling, said)
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    order, weights = candidates(scores, sampling)
    return int(order[_pick(weights, uniform(seed, position))])


def chance(scores: Scores, sampling: Sampling, said: Counter[int], token_id: int) -> float:
    """Probability over all seeds that `choose` returns this token, which bounds how often a guess of it can be right.
    """
    if sampling.temperature == 0.0:
        return float(choose(scores, sampling, 0, 0, said) == token_id)
    order, weights = candidates(penalised(scores, sampling, said), sampling)
    return float(weights[order == token_id].sum())


def penalised(scores: Scores, sampling: Sampling, said: Counter[int]) -> Scores:
    """Scores after logit bias and the two penalties, as OpenAI defines them."""
    if not (sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty):
        return scores
    scores = scores.copy()
    for token_id, bias in sampling.logit_bias:
        scores[token_id] += bias
    for token_id, count in said.items():
        scores[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * count
    return scores


def candidates(scores: Scores, sampling: Sampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Token ids that may be drawn, likeliest first, and their weights, which sum to 1."""
    scaled = scores.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    keep = len(order)
    if sampling.top_p < 1.0:
        keep = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
    if sampling.min_p > 0.0:
        keep = min(keep, int((weights >= sampling.min_p * weights[0]).sum()))
    order, weights = order[:keep], weights[:keep]
    return order, weights / weights.sum()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on the seed and the position only."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _pick(weights: npt.NDArray[np.float64], at: float) -> int:
    total = np.cumsum(weights)
    return min(int(np.searchsorted(total, at * total[-1], side="right")), len(weights) - 1)


def require_numbers(scores: Scores) -> None:
    """Raise `NotNumbers` unless the best score is a finite number and none is NaN."""
    best = scores.max()  # NaN when any is
    if not np.isfinite(best):
        raise NotNumbers(NOT_NUMBERS)


def logprobs_of(scores: Tensor, token_id: int, top: int) -> TokenLogprob:
    """The chosen token's log-probability under the untouched scores, and the `top` likeliest."""
    logprobs = torch.log_softmax(scores, -1)
    best = torch.topk(logprobs, top) if top else None
    alternatives = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), alternatives)
