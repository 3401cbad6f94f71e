"""Forms converted to the admin API's shapes."""

from __future__ import annotations

import pytest

from gateway.admin.shapes.access import KeyChange, NewKey
from gateway.admin.shapes.knobs import Knobs
from gateway.dashboard.forms import checked, label_of, listed, optional, picked, seen, shaped
from gateway.errors import CallerError


@pytest.mark.parametrize(
    ("sent", "said", "param"),
    [
        ({"cost_weight": "7"}, "Cost weight: must be at most 1.0", "cost_weight"),
        ({"cost_weight": "a lot"}, "Cost weight: must be a number", "cost_weight"),
        ({"max_cost_usd": "-1"}, "Max cost, $: must be at least 0.0", "max_cost_usd"),
        ({"min_quality": "nan"}, "Min quality: ", "min_quality"),
        ({"surprise": "1"}, "Surprise: ", "surprise"),
    ],
)
def test_errors_are_shown_beside_their_field(sent: dict[str, str], said: str, param: str) -> None:
    """The error is a sentence, and has the field's name so that the page can mark the field."""
    with pytest.raises(CallerError) as refused:
        shaped(Knobs, sent)
    assert refused.value.message.startswith(said) and refused.value.param == param and refused.value.status == 422


def test_empty_fields_are_left_out_or_lift_a_limit() -> None:
    """An empty field is left out of a new object, and removes a limit in a change."""
    fields = {"name": "shop", "rpm": "", "tpm": "5", "csrf_token": "x"}
    assert shaped(NewKey, picked(fields, NewKey)).rpm is None
    assert optional(fields, KeyChange) == {"rpm": None, "tpm": "5"}


def test_boxes_and_lists() -> None:
    """A checkbox that isn't sent is not ticked; names are separated by commas or line breaks."""
    assert checked({"knobs": "on"}, "knobs", "explore") == {"knobs": True, "explore": False}
    assert listed("auto, small\nlarge,,") == ["auto", "small", "large"]
    assert label_of("budget_usd_per_day") == "Budget per day, $" and label_of("max_latency_s") == "Max latency, s"


@pytest.mark.parametrize("version", ["-1", "one", "1.5", "٣", "9" * 30])
def test_a_version_that_no_page_showed_is_refused(version: str) -> None:
    """A form that was tampered with or truncated gets an error, and isn't a failure of the gateway."""
    assert seen({"version": "12"}) == 12 and seen({}) == 0
    with pytest.raises(CallerError, match="out of date"):
        seen({"version": version})
