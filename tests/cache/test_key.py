"""What separates two requests in the cache, and what doesn't."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cache.key import TRANSPORT_FIELDS, exact_key, partition_key

_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_bodies = st.dictionaries(st.text(max_size=8).filter(lambda f: f not in TRANSPORT_FIELDS), _values, max_size=4)


def fields(blob: str | bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body, split as the gateway splits them."""
    return msgspec.json.decode(blob, type=dict[str, msgspec.Raw])


def key_of(body: Any, tenant: str = "t", scope: str = "auto", surface: str = "chat", **dumps: Any) -> bytes:
    """The exact key of a body."""
    return exact_key(tenant=tenant, scope=scope, surface=surface, body=fields(json.dumps(body, **dumps)))


def shuffled(value: Any) -> Any:
    """The same value with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {k: shuffled(v) for k, v in reversed(value.items())}
    return [shuffled(v) for v in value] if isinstance(value, list) else value


def exactly(value: Any) -> str:
    """A text that is equal only for equal values of equal types."""
    return json.dumps(value, sort_keys=True)


@given(_bodies)
def test_order_white_space_and_escapes_do_not_count(body: dict[str, Any]) -> None:
    """The same values have the same key, however they are written."""
    assert key_of(body) == key_of(shuffled(body), indent=2) == key_of(body, ensure_ascii=False)


@given(_bodies, _bodies)
def test_different_values_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two bodies have the same key exactly when their values are equal."""
    assert (key_of(one) == key_of(other)) == (exactly(one) == exactly(other))


@given(_bodies, st.sampled_from(sorted(TRANSPORT_FIELDS)), _values)
def test_transport_fields_do_not_count(body: dict[str, Any], name: str, value: Any) -> None:
    """Fields that only change how the answer is delivered don't change the key."""
    assert key_of(body) == key_of({**body, name: value})


@given(_bodies, st.text(min_size=1, max_size=8).filter(lambda f: f not in TRANSPORT_FIELDS), _values)
def test_unknown_parameters_count(body: dict[str, Any], name: str, value: Any) -> None:
    """An unknown parameter separates two requests."""
    body.pop(name, None)
    assert key_of(body) != key_of({**body, name: value})


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_tenant_scope_and_surface_count(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Tenant, scope and surface each separate requests, and their boundaries can't be confused."""
    assert (key_of({}, *one) == key_of({}, *other)) == (one == other)


def test_keys_are_stable() -> None:
    """A later process finds an entry under the same key: the digests are constants."""
    assert key_of({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).hex() == (
        "99e261f4bad44e509cf54180f83aa8b3"
    )


def test_a_body_beyond_json_is_keyed_by_its_bytes() -> None:
    """A body that can't be canonicalised has a key of its exact bytes."""
    deep = "[" * 200_000 + "]" * 200_000
    keys = {
        exact_key(tenant="t", scope="s", surface="chat", body={"a": blob.encode()})
        for blob in (deep, deep + " ", "1e999", '"\\ud800"', '"\\ud801"')
    }
    assert len(keys) == 5


def test_a_long_body_is_keyed() -> None:
    """A request of 10 MB has a key like any other, and one changed byte at its end changes it."""
    one = exact_key(tenant="t", scope="s", surface="chat", body={"a": b'"' + b"x" * 10_000_000 + b'"'})
    other = exact_key(tenant="t", scope="s", surface="chat", body={"a": b'"' + b"x" * 9_999_999 + b'y"'})
    assert one != other


def ask(text: str, **more: Any) -> dict[str, Any]:
    """A chat request with a system prompt and one question."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    return {"model": "auto", "messages": turns, **more}


def partition(body: Any, surface: str = "chat", embedder: str = "e", tenant: str = "t") -> tuple[bytes, str] | None:
    """The partition of a body, and its question."""
    blob = fields(json.dumps(body))
    return partition_key(tenant=tenant, scope="s", surface=surface, body=blob, embedder=embedder)


@given(st.text(), st.text())
def test_only_the_last_user_text_is_left_out(one: str, other: str) -> None:
    """Questions in other words share a partition, and the text of the question is returned unchanged."""
    first, second = partition(ask(one)), partition(ask(other))
    assert first is not None and second is not None
    assert first[0] == second[0]
    assert (first[1], second[1]) == (one, other)


def test_everything_else_separates_partitions() -> None:
    """System prompt, history, parameters, embedder and tenant each separate partitions."""
    base = ask("q")
    others = [
        partition({**base, "max_tokens": 5}),
        partition({**base, "messages": [{"role": "system", "content": "Be rude."}, base["messages"][1]]}),
        partition({**base, "messages": [{"role": "user", "content": "before"}, *base["messages"]]}),
        partition({**base, "messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}),
        partition(base, embedder="f"),
        partition(base, tenant="u"),
        partition(base),
    ]
    assert len({found[0] for found in others if found is not None}) == len(others)


def test_requests_without_one_plain_question_have_no_partition() -> None:
    """Images, tool results, prefilled assistant turns and other surfaces have no partition: only the exact cache serves
    them.
    """
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    turns: list[Any] = [
        [],
        [{"role": "assistant", "content": "so far"}],
        [{"role": "tool", "content": "42"}],
        [{"role": "user", "content": [{"type": "text", "text": "q"}, picture]}],
        [{"role": "user", "content": [{"type": "document", "text": "q", "source": {}}]}],
        [{"role": "user", "content": None}],
        ["user"],
        {"role": "user"},
    ]
    assert [partition({"messages": t}) for t in turns] == [None] * len(turns)
    assert partition({"input": "q"}, surface="embeddings") is None
    assert partition({}) is None


def test_each_surface_names_its_question() -> None:
    """For completions, responses and messages the question is the last user text, which alone is left out of the
    partition.
    """

    def asked(text: str) -> list[Any]:
        turn = {"role": "user", "content": [{"type": "input_text", "text": text}]}
        return [
            partition({"prompt": text}, "completions"),
            partition({"input": text}, "responses"),
            partition({"input": [turn]}, "responses"),
            partition({"messages": [{"role": "user", "content": text}]}, "messages"),
        ]

    one, other = asked("q"), asked("r")
    assert [found[1] for found in (*one, *other)] == ["q"] * 4 + ["r"] * 4
    assert [found[0] for found in one] == [found[0] for found in other] and len({found[0] for found in one}) == 4
