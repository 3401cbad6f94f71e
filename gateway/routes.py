"""The names that a client may ask for: routes, which choose among models, and models, which are pinned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from cascade.planner import Planner
from cascade.promise import Promise
from cascade.strategies import REPEATING
from gateway.checker import Checker
from gateway.config.check import LEARNED
from gateway.config.settings import FloorSetting
from gateway.config.types import Config, ModelConfig, RouteConfig
from gateway.errors import CallerError, UnknownModel
from gateway.fleet import Fleet
from gateway.money.ledger import Account
from gateway.money.limits import Limit
from gateway.money.prices import MOST, MTOK, ONCE, Price, highest, nanousd, usd
from gateway.solved import SolvedCases, open_solved
from gateway.wire.describe import Described
from routers.registry import bandit_axes
from routers.strategy_bandit import StrategyBandit
from routers.types import Candidate, Knobs, Router


@dataclass(frozen=True, slots=True)
class Model:
    """A model under its public name; its deployments are the fleet's business."""

    name: str
    config: ModelConfig
    """Configuration of the most expensive deployment."""
    price: Price
    """The highest of all deployments, bucket by bucket, so that a hold covers any of them."""
    candidates: Mapping[int, Candidate]
    """The model as routers see it, by the factor (in thousandths) that a service tier puts on its token prices."""
    search_tokens: int = 0
    """The most tokens that one web search adds to the prompt, at any deployment."""
    tool_tokens: Mapping[str, int] = field(default_factory=dict)
    """The most tokens that one run of each other provider-run tool adds to the prompt, at any deployment."""
    context_tokens: int = 0
    """The longest context of all deployments; 0 where that of one is unknown."""
    rates: tuple[int, int, int] | None = field(init=False)
    """Of the worst case of a request that `costs_only_tokens`: the price of an input token and of an output token, and
    the output tokens where the request has no limit. None for a model whose every answer may cost more than that.
    """

    def __post_init__(self) -> None:
        price, is_plain = self.price, not self.candidate.web_searches and self.price.factor("") <= ONCE
        rates = (price.highest_input, price.highest_output, self.config.max_output_tokens) if is_plain else None
        object.__setattr__(self, "rates", rates)

    @property
    def candidate(self) -> Candidate:
        return self.candidates[ONCE]

    def candidate_at(self, tier: str) -> Candidate:
        """The model as routers see it for a request of this service tier; the same object each time."""
        return self.candidates[self.price.factor(tier)]

    def worst(self, described: Described, more_input: int = 0, more_output: int = 0) -> int:
        """The most nano-dollars that one attempt can cost. `more_input` and `more_output` are tokens that the gateway
        adds to the request's; a request without an output limit has the model's limit, and gets no `more_output`.
        """
        into = described.prompt_bound(self.context_tokens, more_input)
        if searches := max(described.web_searches, self.candidate.web_searches):
            into += searches * self.search_tokens
        if described.tool_runs:
            into += sum(count * self.tool_tokens.get(kind, 0) for kind, count in described.tool_runs.items())
        limit = described.max_output_tokens
        out = (limit + more_output if limit else self.config.max_output_tokens) + described.predicted
        return self.price.worst(into, out, described.n, searches, described.units, described.tier, described.tool_runs)


def worst_cases(
    models: Mapping[str, Model], names: Iterable[str], described: Described, more_input: int = 0, more_output: int = 0
) -> dict[str, int]:
    """`Model.worst` of each of these models. Most requests cost only tokens, for which it is one product each."""
    if not described.costs_only_tokens:
        return {name: models[name].worst(described, more_input, more_output) for name in names}
    into, limit, n = described.input_tokens_bound + more_input, described.max_output_tokens, described.n
    worst = {}
    for name in names:
        model = models[name]
        if (rates := model.rates) is None:
            worst[name] = model.worst(described, more_input, more_output)
        else:
            input_price, output_price, most = rates
            out = limit + more_output if limit else most
            worst[name] = min(-(-(into * input_price + out * n * output_price) // MTOK), MOST)
    return worst


@dataclass(frozen=True, slots=True)
class Route:
    """A name that clients ask for, the models behind it, and how one of them is chosen."""

    name: str
    config: RouteConfig
    models: tuple[Model, ...]
    tiers: Mapping[str | None, tuple[Candidate, ...]]
    """The models as routers see them, for each service tier that one of them has a price for; at None for any other."""
    fallbacks: tuple[str, ...]
    """Models tried when every one of `models` has failed."""
    router: Router | None
    """None for a pinned model, where there is nothing to choose."""
    default_model: str
    knobs: Knobs
    names: tuple[str, ...]
    """All models that may be tried: `models`, then `fallbacks`."""
    scope: str
    """Partition of the cache: the route and the models behind it."""
    cascade: Planner | None = None
    """The trained cascade; None where `config.cascade` names a strategy."""
    promise: Promise | None = None
    """The quality floor that a certified cascade keeps now; None for any other cascade."""
    accounts: tuple[Account, ...] = ()
    limits: tuple[Limit, ...] = ()
    checker: Checker | None = None
    """The operator's check of answers that the cascade can still reject."""
    solved: SolvedCases | None = None
    """Solved cases that are shown to models as examples."""
    repeats: bool = False
    """The cascade may ask one model repeatedly, so that every attempt may be one of the most expensive model."""
    strategy_bandit: StrategyBandit | None = None
    """Learns which strategy suits a query; None where `config.cascade` names one strategy."""

    @property
    def attempted(self) -> tuple[str, ...]:
        """Each model as many times as a request may try it."""
        return self.names * self.config.max_attempts if self.repeats else self.names

    def candidates(self, fleet: Fleet, now: float, tier: str = "") -> Sequence[Candidate]:
        """The route's models with what the fleet knows of them now, for a request of this service tier."""
        return fleet.as_of(self.tiers.get(tier) or self.tiers[None], now)


class RouteBook:
    """Every name that a client can ask for. Immutable: a new configuration makes a new book."""

    def __init__(
        self,
        config: Config,
        routers: Mapping[str, Router],
        cascades: Mapping[str, Planner] | None = None,
        floors: Mapping[str, FloorSetting] | None = None,
        lost: Mapping[str, str] | None = None,
    ) -> None:
        self.lost = lost or {}
        """By route, why its promoted router version could not be loaded and another one serves."""
        self._cascades = cascades or {}
        self._floors = floors or {}
        self.models = {name: _model(config, name) for name in dict.fromkeys(m.name for m in config.models)}
        self._pinned = {name: self._pin(model) for name, model in self.models.items()}
        self._configs = {route.name: route for route in config.routes}
        self.routes = {route.name: self._route(route, routers[route.name]) for route in config.routes}

    def find(self, name: str, param: str = "model") -> Route:
        """The route, or else the model, of this name. Raises UnknownModel, with `param` as the request's field at
        fault.
        """
        route = self.routes.get(name) or self._pinned.get(name)
        if route is None:
            raise UnknownModel(
                f"The model '{name}' does not exist: it is neither a route nor a model here. "
                "GET /v1/models lists both.",
                param=param,
            )
        return route

    def narrow(self, route: Route, names: tuple[str, ...]) -> Route:
        """The route with only the models that a request allows. Raises CallerError where none is left, and where no
        model has one of the names: a misspelt name would silently leave out the model that was meant.
        """
        models = tuple(model for model in route.models if model.name in names)
        if not models:
            known = ", ".join(model.name for model in route.models)
            raise CallerError(
                f"none of these models is in route '{route.name}', which has: {known}", param="headgate.models"
            )
        for name in names:
            if name not in self.models:
                raise CallerError(f"no model here is named '{name}'", param="headgate.models")
        allowed = {model.name for model in models}
        kept = tuple(name for name in route.names if name in allowed or name == route.config.judge)
        default = route.default_model if route.default_model in allowed else models[-1].name
        return replace(
            route,
            models=models,
            tiers=_by_tier(models),
            fallbacks=(),
            default_model=default,
            names=kept,
            scope=_scope(route.name, kept),
        )

    def _pin(self, model: Model) -> Route:
        config = RouteConfig(name=model.name, models=[model.name])
        names = (model.name,)
        models = (model,)
        tiers, scope = _by_tier(models), _scope("", names)
        return Route(model.name, config, models, tiers, (), None, model.name, Knobs(), names, scope)

    def _route(self, config: RouteConfig, router: Router) -> Route:
        models = tuple(self.models[name] for name in config.models)
        own = set(config.models)
        fallbacks = tuple(name for name in self._fallbacks(config, set()) if name not in own)
        knobs = knobs_of(config)
        names = tuple(dict.fromkeys((*config.models, *fallbacks, *filter(None, [config.judge]))))
        return Route(
            config.name,
            config,
            models,
            _by_tier(models),
            fallbacks,
            router,
            config.default_model or config.models[-1],
            knobs,
            names,
            _scope(config.name, names),
            self._cascades.get(config.name),
            _promise(config, self._floors.get(config.name)),
            route_accounts(config),
            _limits(config),
            Checker(config.check, timeout_s=config.check_timeout_s) if config.check else None,
            open_solved(config.solved, config.solved_most) if config.solved else None,
            _repeats(config, self._cascades.get(config.name)),
            _strategy_bandit(config),
        )

    def _fallbacks(self, config: RouteConfig, seen: set[str]) -> list[str]:
        """The fallback models in order, each route among them replaced by its models."""
        names: list[str] = []
        for name in config.fallback:
            if name in seen:
                continue
            seen.add(name)
            other = self._configs.get(name)
            names += [*other.models, *self._fallbacks(other, seen)] if other else [name]
        return list(dict.fromkeys(names))


KNOB_NAMES = ("cost_weight", "min_quality", "max_cost_usd", "max_latency_s", "budget_usd_per_day")


def knobs_of(config: RouteConfig) -> Knobs:
    """The knobs that a route sets for its router; without the quality floor where a certified cascade keeps it."""
    stated = {name: getattr(config, name) for name in KNOB_NAMES}
    if config.cascade == "certified":
        stated["min_quality"] = None
    return Knobs(**stated, wait_usd_per_s=config.wait_usd_per_s)


def share_of(knobs: Knobs) -> float:
    """The share of the best single model's quality that a trained cascade must reach: the quality floor; without one
    1.0, or infinity (as much as possible) where cost has no weight.
    """
    if knobs.min_quality is None:
        return inf if knobs.cost_weight == 0.0 else 1.0
    return knobs.min_quality


def _model(config: Config, name: str) -> Model:
    deployments = [model for model in config.models if model.name == name]
    dearest = max(deployments, key=lambda m: m.output_usd_per_mtok + m.input_usd_per_mtok)
    price = highest(map(Price.of, deployments))
    abilities = {"tools": dearest.tools, "images": dearest.images, "json": dearest.json}
    candidate = Candidate(
        model=name,
        input_usd_per_mtok=dearest.input_usd_per_mtok,
        output_usd_per_mtok=dearest.output_usd_per_mtok,
        context_tokens=dearest.context_tokens,
        supports=frozenset(ability for ability, able in abilities.items() if able),
        default_max_output_tokens=dearest.max_output_tokens,
        cached_price=_cached_price(dearest),
        web_search_usd=max(one.web_search_usd for one in deployments),
        web_searches=max(one.web_searches for one in deployments),
        tool_usd=tuple((kind, usd(each)) for kind, each in price.tools.items()),
    )
    search_tokens = max(one.web_search_tokens for one in deployments)
    tool_tokens: Counter[str] = Counter()
    for one in deployments:
        tool_tokens |= Counter(one.tool_tokens)  # keeps the larger count of each tool
    contexts = [one.context_tokens for one in deployments]
    context = max(contexts) if all(contexts) else 0
    return Model(name, dearest, price, _by_price_factor(candidate, price), search_tokens, tool_tokens, context)


def _by_price_factor(candidate: Candidate, price: Price) -> dict[int, Candidate]:
    """The candidate at the token prices of each service tier, by the tier's factor in thousandths."""
    into, out = candidate.input_usd_per_mtok, candidate.output_usd_per_mtok
    return {
        factor: replace(candidate, input_usd_per_mtok=into * factor / ONCE, output_usd_per_mtok=out * factor / ONCE)
        for factor in price.tiers.values()
    } | {ONCE: candidate}


def _by_tier(models: Sequence[Model]) -> dict[str | None, tuple[Candidate, ...]]:
    """The models as routers see them, for each service tier that one of them has a price for; at None for any other."""
    tiers = {"", *(tier for model in models for tier in model.price.tiers)}
    return {tier: tuple([model.candidate_at(tier) for model in models]) for tier in tiers} | {
        None: tuple([model.candidate for model in models])
    }


def _strategy_bandit(config: RouteConfig) -> StrategyBandit | None:
    """The bandit over the route's strategies; None unless its cascade is "learned"."""
    if config.cascade != LEARNED:
        return None
    return StrategyBandit(config.strategies, bandit_axes(), config.step_price, config.explore)


def _repeats(config: RouteConfig, cascade: Planner | None) -> bool:
    named = config.strategies if config.cascade == LEARNED else [config.cascade]
    return cascade.writes if cascade is not None else any(name in REPEATING for name in named)


def _promise(config: RouteConfig, floor: FloorSetting | None) -> Promise | None:
    """The quality floor that a certified cascade keeps by its threshold; None for any other cascade."""
    if config.cascade != "certified":
        return None
    reference = config.reference or config.models[-1]
    accept_at, router = (floor.accept_at, floor.router) if floor is not None else (None, "")
    return Promise(reference, config.measured_share, accept_at, router)


def _cached_price(config: ModelConfig) -> float:
    """Price of a cached prompt token as a share of the input price, at most 1."""
    if config.cache_read_usd_per_mtok is None or not config.input_usd_per_mtok:
        return 1.0
    return min(config.cache_read_usd_per_mtok / config.input_usd_per_mtok, 1.0)


def _scope(name: str, models: tuple[str, ...]) -> str:
    return "\0".join((name, *models))


def route_accounts(config: RouteConfig) -> tuple[Account, ...]:
    if config.budget_usd_per_day is None:
        return ()
    return (Account(f"route:{config.name}", nanousd(config.budget_usd_per_day), "day"),)


def _limits(config: RouteConfig) -> tuple[Limit, ...]:
    if config.rpm is None and config.tpm is None:
        return ()
    return (Limit(f"route:{config.name}", config.rpm, config.tpm),)
