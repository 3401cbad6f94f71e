"""What an attempt costs: by the usage that the upstream reports, or an estimate where it reports none."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.exchange import Attempt
from gateway.fleet import Deployment
from gateway.money.prices import AUTO
from gateway.providers import Provider
from gateway.wire.chunk import Peek
from gateway.wire.describe import Described
from gateway.wire.hosted_tools import billed
from gateway.wire.usage import Usage

CHARS_PER_TOKEN = 4
"""Estimates tokens where no usage was reported: about right for English, too few tokens for code."""


def charge(
    request: Described, attempt: Attempt, deployment: Deployment, provider: Provider, usage: Usage, seen: Peek
) -> None:
    """Set the attempt's usage and cost. `usage`: as the upstream reports it. `seen`: the output received, and the
    service tier that the upstream reports; where that is empty or "auto", the one that was requested counts.
    """
    chars = output_chars(seen)
    if not usage.tells:
        attempt.estimated = True
        usage = request.expected or Usage(
            input_tokens=request.input_tokens, output_tokens=estimated_tokens(chars),
            web_searches=usage.web_searches, tool_runs=usage.tool_runs,
        )  # fmt: skip
    elif chars and not (usage.output_tokens or usage.completion_tokens):
        attempt.estimated = True
        usage = replace(usage, output_tokens=estimated_tokens(chars))
    searches = deployment.config.web_searches or (request.surely_searches and not _counts_searches(provider))
    if searches > usage.web_searches:
        usage = replace(usage, web_searches=int(searches))
    if usage.tool_runs and _counts_searches(provider):
        usage = replace(usage, tool_runs=billed(usage.tool_runs, request.tool_runs))
    if request.expected is not None and not usage.units:
        usage = replace(usage, units=request.expected.units)
    attempt.usage = usage
    attempt.cost_nanousd = cost_of(usage, deployment, seen.tier if seen.tier not in ("", AUTO) else attempt.tier)


def charge_partial(
    request: Described, attempt: Attempt, deployment: Deployment, provider: Provider, seen: Peek
) -> None:
    """Charge a stream that broke off for what arrived, which usage reported at its start doesn't include."""
    usage, tokens = seen.usage, estimated_tokens(output_chars(seen))
    if usage.tells and usage.completion_tokens < tokens:
        attempt.estimated = True
        usage = replace(usage, output_tokens=tokens)
    charge(request, attempt, deployment, provider, usage, seen)


def cost_of(usage: Usage, deployment: Deployment, tier: str) -> int:
    """Nano-dollars by the configured prices; with `told_cost`, the provider's reported cost if that is higher."""
    cost = deployment.price.cost(usage, tier)
    return max(cost, usage.told_nanousd) if deployment.config.told_cost else cost


def output_chars(seen: Peek) -> int:
    """Characters of everything that an upstream bills as output."""
    chars = len(seen.text) + len(seen.thought) + seen.other_chars
    return chars + sum(map(len, seen.tool_arguments)) if seen.tool_arguments else chars


def estimated_tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def _counts_searches(provider: Provider) -> bool:
    """True if the provider's usage reports web searches, as Anthropic's does."""
    return provider.main_dialect == "messages"
