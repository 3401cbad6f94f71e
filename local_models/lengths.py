"""Predicts how long an answer will be, learned while serving: admission reserves that many tokens (S^3).

S^3 predicts a bucket of lengths from the prompt with a fine-tuned transformer. Here a multinomial logistic model over
hashed token bigrams does it: it learns from each finished request in microseconds and starts from nothing. The
reservation is a quantile of the predicted distribution, so that being too short is rare but never forbidden.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from local_models.request import Request

_BUCKETS = np.array([8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])
_FEATURES = 4096
_LAST_TOKENS = 64


class LengthPredictor:
    """Predicts output tokens from prompt tokens; `quantile` 0.9 errs on the long side."""

    def __init__(self, quantile: float = 0.9, rate: float = 0.5, trust_after: int = 20) -> None:
        self._quantile = quantile
        self._rate = rate
        self._trust_after = trust_after
        self._seen = 0
        self._weights = np.zeros((len(_BUCKETS), _FEATURES), np.float32)
        self._squares = np.full(_FEATURES, 1e-2, np.float32)

    def predict(self, request: Request) -> int:
        """Tokens to reserve; until enough answers were seen, all that the request may use."""
        if self._seen < self._trust_after:
            return request.max_tokens
        probabilities = self._distribution(_features(request))
        bucket = int(np.searchsorted(np.cumsum(probabilities), self._quantile))
        return min(request.max_tokens, int(_BUCKETS[min(bucket, len(_BUCKETS) - 1)]))

    def learn(self, request: Request, output_tokens: int) -> None:
        """One step of Adagrad on the cross entropy of the true bucket."""
        features = _features(request)
        error = self._distribution(features)
        error[min(int(np.searchsorted(_BUCKETS, output_tokens)), len(_BUCKETS) - 1)] -= 1.0
        self._squares[features] += float(error @ error) / len(features)
        step = self._rate / np.sqrt(self._squares[features] * len(features))
        self._weights[:, features] -= np.outer(error, step)
        self._seen += 1

    def _distribution(self, features: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        scores = self._weights[:, features].sum(1) / np.sqrt(len(features))
        weights = np.exp(scores - scores.max())
        return np.asarray(weights / weights.sum(), np.float32)


def _features(request: Request) -> npt.NDArray[np.int64]:
    """Hashed bigrams of the prompt's last tokens, its length, and the limit asked for; each once."""
    ids = np.asarray(request.prompt_ids[-_LAST_TOKENS:], np.int64)
    bigrams = (ids[:-1] * 1_000_003 + ids[1:] * 7_919) % (_FEATURES - 64) + 64
    length = int(np.log2(1 + len(request.prompt_ids)))
    limit = int(np.log2(1 + request.max_tokens))
    return np.unique(np.concatenate([bigrams, [0, 1 + length, 32 + limit]]))
