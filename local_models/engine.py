"""The engine: schedule, run, postprocess, one step at a time, in whatever thread calls `step`.

A bad request never affects another: what can never fit is refused when it is added, scores that are not numbers end
only the request they belong to, and every request ends in exactly one `Finished`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from pathlib import Path

from torch import Tensor

from local_models import multi_step, sampler
from local_models.blocks import BlockPool
from local_models.decoder import Decoder
from local_models.device import device_for, joules_counter
from local_models.errors import LocalModelError, RequestRefused
from local_models.grammar import Grammars, NoTokenAllowed
from local_models.lengths import LengthPredictor
from local_models.meter import Piece, StepMeter
from local_models.options import EngineOptions, with_setting
from local_models.request import Delta, Ending, Event, Finished, Request, TokenLogprob
from local_models.runner import runner_for
from local_models.scheduler import PredictTokens, Scheduler, Sequence, Work
from local_models.settings import Setting
from local_models.speculate import Draft, Drafter, NgramDrafter, model_drafter, share_budget
from local_models.text import TextCodec, TokenStream
from local_models.tiers import offload_for
from local_models.tuning import Tuner

__all__ = ["Engine", "EngineOptions"]
_log = logging.getLogger(__name__)


class Engine:
    """One model: add requests, call `step` until nothing is left to do."""

    def __init__(
        self,
        decoder: Decoder,
        codec: TextCodec,
        options: EngineOptions | None = None,
        *,
        predict: PredictTokens | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shape = decoder.shape
        self.codec = codec
        self.options = options = options or EngineOptions()
        self._clock = clock
        self.lengths = LengthPredictor()
        self.meter = StepMeter()
        self.busy_s = 0.0
        self._counter = joules_counter(decoder.device)
        count = options.kv_tokens // decoder.block_tokens
        self.runner = runner_for(decoder, count)
        pool = self.runner.pool
        self.offload = offload_for(pool, count, options.tier_memory_mb, options.tier_disk_mb, options.tier_folder)
        blocks = BlockPool(
            count, decoder.block_tokens, alpha=options.eviction_alpha, share=options.share_prefixes,
            copy_while_free=options.copy_while_free, offload=self.offload, grain=pool.grain,
        )  # fmt: skip
        self.scheduler = Scheduler(
            blocks, decoder.shape.context_tokens, predict or self.lengths.predict, step_tokens=options.step_tokens,
            most_running=options.most_running, most_waiting=options.most_waiting,
        )  # fmt: skip
        self._grammars = Grammars(codec, decoder.shape.vocabulary, decoder.shape.end_ids)
        self._sequences: dict[str, Sequence] = {}
        self._seeds: dict[str, int] = {}
        self.tuner: Tuner | None = None
        self.steps = 0
        self.output_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.acceptable_tokens = 0.0
        """Expected number of guessed tokens that the optimal rule of acceptance would have kept."""
        self._step_times = multi_step.StepTimes()
        self._drafter = drafter or (NgramDrafter() if options.draft_tokens else None)

    @classmethod
    def load(cls, folder: Path, options: EngineOptions | None = None) -> Engine:
        """An engine for a Hugging Face folder; `CheckpointError` says what is wrong with it."""
        options = options or EngineOptions()
        device = str(device_for(options.device))
        decoder = Decoder.load(
            folder, options.dtype, options.block_tokens,
            int8=options.int8, invariant=options.invariant, native=options.native, device=device,
        )  # fmt: skip
        codec = TextCodec(folder)
        codec.require_match(decoder.shape.vocabulary, decoder.shape.end_ids)
        return cls(decoder, codec, options, drafter=model_drafter(folder, codec, options))

    @property
    def busy(self) -> bool:
        """True while some request has not finished."""
        return bool(self._sequences)

    @property
    def blocks(self) -> BlockPool:
        return self.scheduler.blocks

    def add(self, request: Request) -> None:
        """Add a request to the waiting line. Raises `RequestRefused` or `EngineFull`."""
        self._check_tokens(request)
        matcher = self._grammars.matcher(request.grammar) if request.grammar else None
        sequence = self.scheduler.add(request, self._clock())
        sequence.stream = TokenStream(self.codec, request.stop)
        sequence.matcher = matcher
        self._sequences[request.id] = sequence
        seed = request.sampling.seed
        self._seeds[request.id] = secrets.randbits(48) if seed is None else seed

    def cancel(self, request_id: str) -> list[Event]:
        """End a request now; without effect where it has ended already."""
        sequence = self._sequences.get(request_id)
        return [self._finish(sequence, "cancelled")] if sequence else []

    def step(self) -> list[Event]:
        """Compute one batch; returns the events that came of it."""
        now_s = self._clock()
        events = self._expire(now_s)
        plan = self.scheduler.plan(now_s)
        self.runner.copy(plan.copies)
        if not plan.work:
            return events
        begun_s, begun_joules = self._clock(), self._counter()
        self._guess(plan.work)
        left = self._multi_step_tokens(plan.work)
        if left:
            return events + self._run_steps(plan.work, left, begun_s, begun_joules)
        scores = self.runner.run(plan.work)
        self.steps += 1
        self._charge(plan.work, self._clock() - begun_s, begun_joules)
        return events + self._postprocess(plan.work, scores)

    def hurry(self) -> None:
        """Make a running `step` return soon, because another job waits for the engine. Thread-safe."""
        self.runner.decoder.hurry()

    def _multi_step_tokens(self, work: list[Work]) -> list[int]:
        """How many tokens each sequence may generate in one call, largest first, with their slots reserved; empty where
        only a single step is possible.
        """
        is_guessing = self._drafter is not None and self.options.draft_tokens > 0
        if is_guessing or self.scheduler.waiting or not multi_step.is_greedy(work) or not self.runner.decoder.is_native:
            return []
        left = multi_step.tokens_left(work, self._step_times.steps(work))
        return left if left[0] > 1 and multi_step.reserve(self.blocks, work, left) else []

    def _run_steps(self, work: list[Work], left: list[int], begun_s: float, begun_joules: float | None) -> list[Event]:
        """Compute several steps in one call; returns the events that came of them."""
        said = self.runner.run_steps(work, left)
        self.steps += len(said[0])
        self._charge(work, self._clock() - begun_s, begun_joules, [len(tokens) for tokens in said])
        events: list[Event] = []
        for piece, tokens in zip(work, said, strict=True):
            before = piece.sequence.output_tokens
            more = multi_step.append(piece.sequence, tokens, self._shape.end_ids)
            self.output_tokens += piece.sequence.output_tokens - before
            events += self._events_of(piece.sequence, more)
        return events

    def _events_of(self, sequence: Sequence, more: multi_step.NewTokens) -> list[Event]:
        name = sequence.request.id
        events: list[Event] = [Delta(name, more.text, more.token_ids)] if more.token_ids else []
        if more.reason == "error":
            return [*events, self._finish(sequence, "error", sampler.NOT_NUMBERS)]
        assert sequence.table is not None
        self.blocks.commit(sequence.table, sequence.ids, sequence.computed)
        return [*events, self._finish(sequence, more.reason, text=more.rest)] if more.reason else events

    def audit(self) -> None:
        """Assert that no block is leaked or owned twice."""
        tables = [s.table for s in self._sequences.values() if s.table is not None]
        self.blocks.audit(tables)

    def embed(self, ids: Ids[int]) -> Tensor:
        """The mean hidden state of a text, of length 1."""
        self._check_text(ids, len(ids), "input")
        vector = self.runner.embed(ids)
        if not bool(vector.isfinite().all()):
            raise LocalModelError("what the model computed of this text are not numbers")
        return vector

    def score(self, prompt: Ids[int], answer: Ids[int]) -> list[float]:
        """Log-probabilities of the tokens of an answer, which any model or person may have written."""
        if not prompt or not answer:
            raise RequestRefused("scoring needs a prompt and an answer", param="prompt")
        self._check_text([*prompt, *answer], len(prompt) + len(answer) - 1, "prompt")
        logprobs = self.runner.score(prompt, answer)
        if any(math.isnan(logprob) for logprob in logprobs):
            raise LocalModelError("what the model computed of this text are not numbers")
        return logprobs

    def _check_text(self, ids: Ids[int], count: int, param: str) -> None:
        """Refuse a text that is computed in one pass where it holds ids that are no tokens, or does not fit the
        context.
        """
        shape = self._shape
        if not 0 < count <= shape.context_tokens:
            raise RequestRefused(f"{count} tokens are not 1 to {shape.context_tokens}", param=param)
        if not all(0 <= token_id < shape.vocabulary for token_id in ids):
            raise RequestRefused("the text holds ids that are no tokens of this model", param=param)

    def _check_tokens(self, request: Request) -> None:
        vocabulary = self._shape.vocabulary
        if not request.prompt_ids:
            raise RequestRefused("the prompt is empty", param="messages")
        if not all(0 <= token_id < vocabulary for token_id in request.prompt_ids):
            raise RequestRefused("the prompt holds ids that are no tokens of this model", param="prompt")
        if not all(0 <= token_id < vocabulary for token_id, _ in request.sampling.logit_bias):
            raise RequestRefused("logit_bias names ids that are no tokens of this model", param="logit_bias")

    def _charge(
        self, work: list[Work], seconds: float, begun_joules: float | None, made: list[int] | None = None
    ) -> None:
        """Divide the time (seconds) and energy (joules) of one or several steps among their requests. `made`: number of
        steps of each piece of work, largest first; None: one each.
        """
        made = made or [1] * len(work)
        steps = made[0]
        pieces = [
            Piece(
                prompt_tokens=0 if piece.sequence.is_decoding else piece.count,
                decoded_tokens=many * (1 + len(piece.drafts)) if piece.sequence.is_decoding else 0,
                attended_tokens=many * piece.count * (piece.start + (piece.count + 1) // 2),
            )
            for piece, many in zip(work, made, strict=True)
        ]
        for piece, share in zip(work, self.meter.split(pieces, seconds), strict=True):
            piece.sequence.usage.compute_s += share
        ended_joules = self._counter()
        if begun_joules is not None and ended_joules is not None and ended_joules >= begun_joules:
            shares = self.meter.split(pieces, ended_joules - begun_joules)
            for piece, share in zip(work, shares, strict=True):
                piece.sequence.usage.joules = (piece.sequence.usage.joules or 0.0) + share
        self.meter.learn(pieces, seconds, steps)
        self.busy_s += seconds
        if made[-1] == steps:
            self._step_times.learn(work, seconds / steps)
        if self.tuner is not None:
            self.tuner.step(sum(made), seconds, steps)

    def _expire(self, now_s: float) -> list[Event]:
        late = [
            sequence
            for sequence in self._sequences.values()
            if sequence.request.deadline_s is not None and now_s >= sequence.request.deadline_s
        ]
        return [self._finish(sequence, "deadline") for sequence in late]

    def _postprocess(self, work: list[Work], scores: Tensor) -> list[Event]:
        events: list[Event] = []
        row = 0
        now_s = self._clock()
        for piece in work:
            sequence = piece.sequence
            sequence.computed += piece.count
            if sequence.computed == len(sequence.ids):
                rows = 1 + len(piece.drafts)
                events += self._extend_safely(piece, scores[row : row + rows], now_s)
                row += rows
        return events

    def _extend_safely(self, piece: Work, scores: Tensor, now_s: float) -> list[Event]:
        """As `_extend_and_check`; any error ends this request only."""
        sequence = piece.sequence
        try:
            return self._extend_and_check(piece, scores, now_s)
        except sampler.NotNumbers as error:
            return [self._finish(sequence, "error", str(error))]
        except NoTokenAllowed as error:
            return [self._finish(sequence, "refused", str(error))]
        except Exception as error:
            _log.exception("no token could be chosen for request %s", sequence.request.id)
            return [self._finish(sequence, "error", f"no token could be chosen: {error}")]

    def _extend_and_check(self, piece: Work, scores: Tensor, now_s: float) -> list[Event]:
        """Choose the next token, and further ones as long as each was guessed right."""
        sequence, drafts = piece.sequence, piece.drafts
        events: list[Event] = []
        accepted = 0
        for row in range(1 + len(drafts)):
            guess = drafts[row] if row < len(drafts) else None
            events += self._extend(sequence, scores[row], now_s, guess)
            if sequence.ids[-1] != guess:
                break
            accepted += 1
            if sequence.table is None:
                break
            # The guess was right, and its keys were computed in this pass.
            sequence.computed += 1
        if drafts:
            sequence.usage.drafted_tokens += len(drafts)
            sequence.usage.accepted_tokens += accepted
            self.drafted_tokens += len(drafts)
            self.accepted_tokens += accepted
            if self._drafter is not None:
                self._drafter.learn(sequence.request.id, len(drafts), accepted)
        return events

    def _guess(self, work: list[Work]) -> None:
        """Add guessed tokens to the sequences that decode, within the batch's budget and the free blocks."""
        decoding = {piece.sequence.request.id: piece for piece in work if piece.sequence.is_decoding}
        budget = min(self.options.draft_budget, self.options.draft_tokens * len(decoding))
        if self._drafter is None or not decoding or budget <= 0:
            return
        contexts = {name: piece.sequence.ids for name, piece in decoding.items()}
        guesses = {
            name: self._of_use(guess, decoding[name].sequence)
            for name, guess in self._drafter.propose(contexts, self.options.draft_tokens).items()
        }
        for name, drafts in share_budget(guesses, budget).items():
            sequence = decoding[name].sequence
            assert sequence.table is not None
            if drafts and self.blocks.grow(sequence.table, len(sequence.ids) + len(drafts)):
                decoding[name].drafts = list(drafts)

    def _of_use(self, guess: Draft, sequence: Sequence) -> Draft:
        """The guesses that could be kept: none beyond the answer's possible end."""
        most = max(0, sequence.request.max_tokens - sequence.output_tokens - 1)
        if not sequence.request.ignore_end:
            ends = (at for at, token_id in enumerate(guess.ids, 1) if token_id in self._shape.end_ids)
            most = min(most, next(ends, most))
        return Draft(guess.ids[:most], guess.probabilities[:most])

    def _extend(self, sequence: Sequence, scores: Tensor, now_s: float, guess: int | None) -> list[Event]:
        """Choose the sequence's next token; returns its events."""
        request = sequence.request
        row = scores.numpy()
        sampler.require_numbers(row)
        # Not before: what led to no numbers must not become anybody's prefix.
        assert sequence.table is not None
        self.blocks.commit(sequence.table, sequence.ids, sequence.computed)
        if sequence.matcher is not None:
            row = row.copy()
            row[~sequence.matcher.allowed()] = float("-inf")
        if guess is not None:
            self.acceptable_tokens += sampler.chance(row, request.sampling, sequence.said, guess)
        seed = self._seeds[request.id]
        token_id = sampler.choose(row, request.sampling, seed, sequence.output_tokens, sequence.said)
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        sequence.ids.append(token_id)
        sequence.said[token_id] += 1
        self.output_tokens += 1
        if sequence.matcher is not None:
            sequence.matcher.advance(token_id)
        logprobs: tuple[TokenLogprob, ...] = ()
        if request.top_logprobs is not None:
            logprobs = (sampler.logprobs_of(scores, token_id, request.top_logprobs),)
        return self._tell(sequence, token_id, logprobs)

    def _tell(self, sequence: Sequence, token_id: int, logprobs: tuple[TokenLogprob, ...]) -> list[Event]:
        request, stream = sequence.request, sequence.stream
        assert stream is not None
        ended = token_id in self._shape.end_ids and not request.ignore_end
        if ended:
            return [self._finish(sequence, "stop", text=stream.finish())]
        text = stream.push(token_id)
        delta = Delta(request.id, text, (token_id,), logprobs)
        if stream.stopped_by is not None:
            return [delta, self._finish(sequence, "stop")]
        if sequence.output_tokens >= request.max_tokens:
            return [delta, self._finish(sequence, "length", text=stream.finish())]
        return [delta]

    def _finish(self, sequence: Sequence, reason: Ending, message: str = "", text: str = "") -> Finished:
        request, now_s = sequence.request, self._clock()
        if sequence.table is not None and reason in ("stop", "length"):
            self.blocks.commit(sequence.table, sequence.ids, sequence.computed, ends_turn=True)
        if sequence.table is not None and reason == "error":
            self.runner.pool.zero(sequence.table.private)
        self.scheduler.remove(sequence)
        del self._sequences[request.id], self._seeds[request.id]
        if self._drafter is not None:
            self._drafter.forget(request.id)
        usage = sequence.usage
        usage.output_tokens = sequence.output_tokens
        started_s = sequence.started_s if sequence.started_s is not None else now_s
        first_s = sequence.first_token_s if sequence.first_token_s is not None else now_s
        usage.prefill_s, usage.decode_s = first_s - started_s, now_s - first_s
        if reason in ("stop", "length"):
            self.lengths.learn(request, usage.output_tokens)
            self._tune(sequence)
        stopped_by = sequence.stream.stopped_by if sequence.stream is not None else None
        return Finished(request.id, reason, text, message, usage, stopped_by)

    def _tune(self, sequence: Sequence) -> None:
        """Take over settings that the tuner expects to be faster; they change no answer."""
        if self.tuner is None:
            return
        setting = self.tuner.answer(sequence.usage, sequence.ids[sequence.prompt_tokens :])
        if setting is not None:
            self.use(setting)

    def use(self, setting: Setting) -> None:
        """Change the tokens per step, the number of guesses and the sharing of prefixes; eight bits need a new load."""
        self.options = with_setting(self.options, setting)
        self.scheduler.step_tokens = setting.step_tokens
        self.blocks.share = setting.share_prefixes
        if setting.draft_tokens and self._drafter is None:
            self._drafter = NgramDrafter()
