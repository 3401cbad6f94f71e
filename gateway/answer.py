"""The request path. Read `answer` top to bottom: that is what happens to every request.

    read_call -> identify -> hold -> describe -> look_up -> choose -> drive -> settle

`read_call` (gateway/call.py) has already made the Call. Each step below does one thing and leaves its result in the
Exchange. Policy lives in other packages (routers, cascade, cache), effects at the edge (providers, journal). `settle`
runs exactly once for every request that was held, whatever happens, before the client sees the last byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from cache.entry import Entry, Hit
from cache.flight import Ticket
from cache.key import exact_key
from cache.rules import may_cache, read_directive
from cascade.batch_prompting import EXTRA_INPUT_TOKENS, EXTRA_OUTPUT_TOKENS
from cascade.plan import plain_plan, plan_for
from cascade.planner import PlanRequest
from cascade.strategies import COMPOSING, WRITING
from cascade.types import Limits, Plan
from gateway.audit import Auditor
from gateway.call import Call, chat_messages
from gateway.embedders import EmbeddingFailed
from gateway.errors import LOCAL_FAILURES, CallerError, HeadgateError, NotFound, UnknownModel
from gateway.exchange import Exchange
from gateway.headers import answer_headers, error_headers, expected_nanousd, refusal_headers
from gateway.keys import Caller
from gateway.pinned import bare_query, bounded, default_choice, listed, merge, pinned, within_cap
from gateway.reply import EVENTS, JSON, Headers, Reply
from gateway.routes import Route, share_of, worst_cases
from gateway.services import Services
from gateway.settle import entry_of, settle
from gateway.wire.answer import translate_answer
from gateway.wire.errors import render_error, status_of
from gateway.wire.replay import replay
from gateway.wire.request import Described
from routers.features import ENCODED, Featurizer
from routers.strategy_bandit import StrategyBandit
from routers.types import Choice, Query, Undecided

log = logging.getLogger("headgate.answer")


class Answering:
    """Answers calls. There is one per worker; gateway/app.py builds everything it needs."""

    def __init__(self, services: Services) -> None:
        self.s = services
        self.auditor = Auditor(services, self.answer)

    async def answer(
        self, call: Call, reply: Reply, caller: Caller | None = None, held: Exchange | None = None
    ) -> Exchange | None:
        """Answer one call, if need be with an error. Returns None if it was refused before anything was held.

        `caller`: given where the gateway asks on its own behalf, without a key. `held`: the exchange, where the caller
        has already called `hold`.
        """
        try:
            exchange = held or await self.hold(call, caller or self.identify(call))
        except HeadgateError as refusal:
            await self.refuse(call, reply, refusal)
            return None
        error: HeadgateError | None = None
        tail = b""
        try:
            with self.join_flight(exchange) as ticket:
                await self.describe(exchange)
                if await self.look_up(exchange, ticket):
                    self.auditor.after_hit(exchange)
                else:
                    self.choose(exchange)
                    tail = await self.drive(exchange, reply)
                    await self.keep(exchange, ticket)
                    self.auditor.after_climb(exchange)
        except HeadgateError as raised:
            error = raised.bare()
        except asyncio.CancelledError:
            error = HeadgateError("the client left", code="cancelled", status=499)
            raise
        except Exception as raised:
            log.exception("request %s failed inside the gateway", call.request_id)
            error = HeadgateError(f"internal error ({type(raised).__name__})", code="internal_error")
        finally:
            settle(self.s, exchange, error)
        await self.finish(exchange, reply, tail, error)
        return exchange

    # -- identify

    def identify(self, call: Call) -> Caller:
        """The caller whose key the request carries. Raises Unauthorized, or as `permit` does."""
        caller = self.s.caller_of(call.headers, call.host)
        permit(caller, call)
        return caller

    # -- hold

    async def hold(self, call: Call, caller: Caller) -> Exchange:
        """Take the request from the rate limits, then hold the worst case of any plan of its route in every budget at
        once. Raises PolicyError where one has no room, CallerError where the route doesn't exist or a cap excludes it.
        """
        s = self.s
        route_name = call.options.route
        route = s.book.find(route_name, "headgate.route") if route_name else s.book.find(call.model)
        if call.options.models:
            route = s.book.narrow(route, call.options.models)
        if call.options.knobs.max_cost_usd is not None:
            route = within_cap(route, s.book.models, call.described, call.options.knobs)
        taken = s.limits.take(caller.limits + route.limits, call.described.input_tokens, s.now())
        worst = self.worst_cases(call, route)
        try:
            bound = cost_bound(route, worst, route.attempted)
            money = await s.ledger.hold(caller.accounts + route.accounts, bound, taken)
        except BaseException:
            taken.correct(0, s.now())
            raise
        s.metrics.opened()
        return Exchange(call, caller, route, s.ids.new("dec"), money, taken, worst)

    def worst_cases(self, call: Call, route: Route) -> dict[str, int]:
        """The most that one attempt can cost, in nano-dollars, for each model that may be tried."""
        extra_input = extra_output = 0
        if route.config.gather_ms:
            extra_input, extra_output = EXTRA_INPUT_TOKENS, EXTRA_OUTPUT_TOKENS
        if route.solved is not None:
            extra_input += route.solved.bound_tokens
        return worst_cases(self.s.book.models, route.names, call.described, extra_input, extra_output)

    # -- describe

    async def describe(self, exchange: Exchange) -> None:
        """Compute what the router reads: features and one embedding. A pinned model needs neither."""
        route = exchange.route
        if route.router is None or exchange.call.content_type:
            return
        version = route.router.features_version
        if version.startswith(ENCODED):
            exchange.query = await self.encoded(exchange.call.described, version)
        elif version or route.strategy_bandit is not None:
            exchange.query = query_of(self.s.featurizer(), exchange.call.described)
        else:
            exchange.query = bare_query(exchange.call.described)
        request = exchange.call.described
        if request.web_searches or request.tool_runs:
            runs = tuple(request.tool_runs.items())
            exchange.query = replace(exchange.query, web_searches=request.web_searches, tool_runs=runs)

    async def encoded(self, request: Described, version: str) -> Query:
        """Describe the request with the configured embedder, in a thread. Where that isn't the router's (`version`) or
        fails, the query has no vector and the router will be undecided.
        """
        embedder = self.s.embedder
        if embedder is None or embedder.version != version:
            return bare_query(request)
        try:
            return await asyncio.to_thread(query_of, embedder, request)
        except EmbeddingFailed as error:
            log.warning("%s", error)
            return bare_query(request)

    # -- look_up

    def join_flight(self, exchange: Exchange) -> Ticket | Alone:
        """Join the identical requests under way (single flight), or get ALONE where this one may not be cached."""
        call, config = exchange.call, exchange.route.config
        if call.content_type:
            return ALONE
        directive = read_directive(call.options.cache, config.cache)
        if directive is None or not (directive.look_up or directive.store or directive.only_if_cached):
            return ALONE
        exchange.directive = directive
        refusal = may_cache(call.raw, self.s.cache.rules_of(config), surface=call.surface)
        if refusal:
            exchange.cache_state = f"refused:{refusal}"
            return ALONE
        exchange.cache_state = "miss"
        exchange.cache_key = exact_key(
            tenant=exchange.caller.tenant, scope=exchange.scope, surface=call.surface, body=call.raw
        )
        return self.s.cache.flight.join(exchange.cache_key) if directive.look_up and directive.store else ALONE

    async def look_up(self, exchange: Exchange, ticket: Ticket | Alone) -> bool:
        """Look in the cache, exact then semantic, then wait for an identical request under way. True if that gave
        an answer. Raises NotFound (504) where the request is only-if-cached and nothing is cached.
        """
        directive, cache = exchange.directive, self.s.cache
        if directive is None:
            return False
        if exchange.cache_key:
            if directive.look_up and await cache.find(exchange, self.s.clock()):
                ticket.land(exchange.hit.entry if exchange.hit else None)
                return True
            if not ticket.leader or cache.flight.lease is not None:
                look_again = cache.finder(exchange, self.s.clock)
                entry = await ticket.wait(self.remaining_s(exchange.call), look_again)
                if entry is not None:
                    cache.serve(exchange, Hit(entry, "exact", why={"entry": entry.id}), "shared")
                    return True
        if directive.only_if_cached:
            raise NotFound("no answer is cached, and the request is only-if-cached", code="not_cached", status=504)
        return False

    # -- choose

    def choose(self, exchange: Exchange) -> None:
        """Let the router choose, plan the attempts, and shrink the hold to that plan's worst case."""
        choice = exchange.choice = self.choice(exchange)
        plan = exchange.plan = self.with_cases(exchange, self.plan(exchange, choice), choice)
        if exchange.route.repeats or len(plan.steps) + len(plan.fallbacks) < len(exchange.route.names):
            models = [step.model for step in (*plan.steps, *plan.fallbacks)]
            exchange.hold.shrink(min(exchange.hold.nanousd, cost_bound(exchange.route, exchange.worst, models)))

    def choice(self, exchange: Exchange) -> Choice:
        """The router's choice; of a pinned model itself; of an undecided router the route's default."""
        route, options = exchange.route, exchange.call.options
        if exchange.call.content_type:
            return listed(route, exchange.worst, options.knobs)
        if route.router is None:
            if not options.stated:
                return pinned(route.default_model, "pinned")
            (candidate,) = route.candidates(self.s.fleet, self.s.now(), exchange.call.described.tier)
            return bounded(route, candidate, exchange.call.described, options.knobs)
        knobs = merge(route.knobs, options.knobs) if options.stated else route.knobs
        if not exchange.caller.explore:
            knobs = replace(knobs, explore=False)
        assert exchange.query is not None
        if route.config.budget_usd_per_day:
            knobs = exchange.paced = self.s.purses.paced(route.name, knobs)
        now = self.s.now()
        candidates = route.candidates(self.s.fleet, now, exchange.call.described.tier)
        candidates = self.s.prefixes.warmed(exchange, candidates, now)
        exchange.draw = next(self.s.draws)
        try:
            return route.router.choose(exchange.query, candidates, knobs, exchange.draw)
        except Undecided as undecided:
            choice = default_choice(route, undecided, lambda model: self.s.fleet.healthy(model, now))
            if route.default_model not in undecided.excluded:
                self.s.metrics.undecided(route.name)
            elif choice.model != route.default_model:
                self.s.metrics.fell_back(route.name)
            return choice

    def plan(self, exchange: Exchange, choice: Choice) -> Plan:
        """The attempts to make for this choice: those of the route's cascade where the request may use one."""
        call, route, config = exchange.call, exchange.route, exchange.route.config
        limits = Limits(max_attempts=config.max_attempts, deadline_s=call.timeout_s)
        may_cascade = call.described.n == 1 and call.surface != "embeddings" and not call.content_type
        if route.promise is not None and may_cascade:
            return route.promise.plan(
                choice, worst_usd(exchange), next(self.s.draws), limits=limits, retries=config.retries,
                fallbacks=route.fallbacks, speculates=config.speculate,
            )
        if route.cascade is not None and may_cascade:
            knobs = merge(route.knobs, call.options.knobs) if call.options.stated else route.knobs
            messages = chat_messages(call) if route.cascade.writes else ()
            request = PlanRequest(choice, worst_usd(exchange), limits, config.retries, route.fallbacks, messages)
            return route.cascade.plan(request, share_of(knobs), config.most_wrong or None)
        bandit = route.strategy_bandit
        strategy = config.cascade if bandit is None else self.draw_strategy(exchange, bandit, may_cascade)
        if strategy in COMPOSING and (call.described.tools or call.described.wants_json):
            strategy = "none"
        gives_confidence = strategy != "confidence" or config.check or self.s.book.models[choice.model].config.logprobs
        if strategy == "none" or not (may_cascade and gives_confidence) or route.cascade is not None:
            return plain_plan(choice.model, (*choice.ranked, *route.fallbacks), limits, config.retries)
        return plan_for(
            choice,
            strategy,
            worst_usd(exchange),
            accept_at=config.accept_at,
            limits=limits,
            retries=config.retries,
            fallbacks=route.fallbacks,
            messages=chat_messages(call) if strategy in WRITING else (),
            speculates=config.speculate,
            judge=config.judge,
        )

    def draw_strategy(self, exchange: Exchange, bandit: StrategyBandit, may_cascade: bool) -> str:
        """Draw this query's strategy from the route's strategy bandit, and note the draw for its learning."""
        if not may_cascade or exchange.query is None:
            return "none"
        pick = bandit.choose(exchange.query.vector, next(self.s.draws), exchange.caller.explore)
        exchange.strategy_pick = pick
        return pick.arm

    def with_cases(self, exchange: Exchange, plan: Plan, choice: Choice) -> Plan:
        """The plan with solved cases shown to the models that need them. A share of requests is shown none, so that
        their effect can be measured.

        That share is drawn at random, not by a hash of the decision's id: gateway/learn/rounds.py samples failed checks
        by that hash.
        """
        solved, call, caller = exchange.route.solved, exchange.call, exchange.caller
        if solved is None:
            return plan
        shown, count = solved.shown_in(plan, chat_messages(call), call.described.text, caller.tenant, choice)
        if not count:
            return plan
        exchange.cases_withheld = exchange.route.config.solved_withheld if caller.explore else 0.0
        withheld = next(self.s.draws) < exchange.cases_withheld
        exchange.cases_shown = 0 if withheld else count
        return plan if withheld else shown

    # -- drive

    async def drive(self, exchange: Exchange, reply: Reply) -> bytes:
        """Climb the plan. Returns a live stream's last bytes, which are sent only after `settle`."""
        call, s = exchange.call, self.s
        tail = await s.driver.drive(exchange, reply, lambda: self.stream_headers(exchange))
        if exchange.kept is not None:
            kept = exchange.kept
            exchange.answer_body = translate_answer(
                kept.body,
                kept.dialect,
                call.surface,
                model=exchange.answered_by,
                request=call.raw,
                strip=kept.strip_logprobs,
            )
        return tail

    def stream_headers(self, exchange: Exchange) -> Headers:
        """Headers of a live stream, whose cost can only be estimated."""
        expected = expected_nanousd(exchange, self.s.book.models[exchange.answered_by])
        kind = [exchange.media] if exchange.call.content_type else EVENTS
        return [*answer_headers(exchange, self.s.now(), expected_nanousd=expected), *kind]

    # -- keep, settle, finish

    async def keep(self, exchange: Exchange, ticket: Ticket | Alone) -> None:
        """Pass the whole answer to the cache, to identical requests that wait for it, and to stored responses."""
        if exchange.call.surface == "responses":
            await self.s.responses.keep(exchange)
        if exchange.directive is None or not exchange.cache_key:
            return
        entry, comparison = entry_of(self.s, exchange), None
        if entry is not None and exchange.directive.store:
            comparison = await self.s.cache.remember(exchange, entry)
        ticket.land(entry)  # only now: it frees the lease, and then another replica looks in the store
        if comparison is not None:
            self.auditor.after_miss(exchange, comparison)

    async def finish(
        self, exchange: Exchange, reply: Reply, tail: bytes, error: HeadgateError | None
    ) -> None:
        """Send the client's last bytes: a whole answer, a stream's end, or an error in the form of the client's API."""
        call, now = exchange.call, self.s.now()
        if error is not None and reply.committed:
            last = exchange.flow.error(error) if exchange.flow is not None else b""
            if last is not None:  # None: the stream has no error event, so its connection is broken off instead
                await reply.end(last)
        elif error is not None:
            spent = any(attempt.failure not in LOCAL_FAILURES for attempt in exchange.attempts)
            extra = error_headers(error, spent=spent)
            body = render_error(error, call.surface, request_id=call.request_id)
            await reply.whole(status_of(error, call.surface), [*answer_headers(exchange, now), JSON, *extra], body)
        elif reply.committed:
            await reply.end(tail)
        elif call.stream:
            await reply.begin(200, [*answer_headers(exchange, now), *EVENTS])
            await reply.end(replay(exchange.answer_body, call.surface, include_usage=call.include_usage))
        else:
            await reply.whole(200, [*answer_headers(exchange, now), exchange.media], exchange.answer_body)

    async def refuse(self, call: Call, reply: Reply, error: HeadgateError) -> None:
        """Answer with an error a request for which nothing is held."""
        self.s.metrics.refused(call.surface, error.code or error.kind)
        headers = refusal_headers(call.request_id, call.surface, error)
        await reply.whole(error.status, headers, render_error(error, call.surface, request_id=call.request_id))

    def remaining_s(self, call: Call) -> float:
        """Seconds until the request's deadline, never below 0."""
        return max(0.0, call.timeout_s - (self.s.now() - call.received_s))


def permit(caller: Caller, call: Call) -> None:
    """Raises UnknownModel where this key may not use the model or route, CallerError where it may not set knobs."""
    name = call.options.route or call.model
    if not caller.may_use(name):
        param = "headgate.route" if call.options.route else "model"
        raise UnknownModel(f"The model '{name}' does not exist or this key may not use it.", param=param)
    if call.options.stated and not caller.knobs:
        raise CallerError("this key may not set headgate knobs: leave them out", param="headgate", status=403)


def cost_bound(route: Route, worst: Mapping[str, int], models: Iterable[str]) -> int:
    """Upper bound, in nano-dollars, on the cost of any climb over these models: the sum of the most expensive attempts
    that `retries`, `max_attempts` and a hedge allow. `worst`: nano-dollars of one attempt, by model.
    """
    config = route.config
    each = list(map(worst.__getitem__, models))
    tries = each * (1 + config.retries)
    if len(tries) > config.max_attempts:
        tries = sorted(tries, reverse=True)[: config.max_attempts]
    return sum(tries) + (max(tries) if config.hedge_after_s is not None else 0)


def worst_usd(exchange: Exchange) -> dict[str, float]:
    """The most dollars that one attempt can cost, by model."""
    return {name: nanousd / 1e9 for name, nanousd in exchange.worst.items()}


def query_of(featurizer: Featurizer, request: Described) -> Query:
    return featurizer.describe(
        request.text,
        input_tokens=request.input_tokens,
        max_output_tokens=request.max_output_tokens,
        turns=request.turns,
        tools=request.tools,
        images=request.images,
        wants_json=request.wants_json,
    )


class Alone:
    """The ticket of a request that neither waits for an identical one nor shares its answer."""

    leader = True

    async def wait(self, timeout_s: float, look_up: object = None) -> Entry | None:
        return None

    def land(self, entry: Entry | None) -> None:
        pass

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        pass


ALONE = Alone()
