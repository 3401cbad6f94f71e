"""Features in C: equal to Python's, from any thread, and never required."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routers import native
from routers.features import Featurizer
from routers.native import HERE, Table

NATIVE, PLAIN = Featurizer(), Featurizer()
PLAIN._table = None
ASCII = st.text(st.characters(max_codepoint=127), max_size=300)
WORDS = st.text(alphabet="un believ#ably\n\t\x1c?:\"_{;$9AB()`def 'ing", max_size=600)
TEXTS = ASCII | WORDS | st.text(max_size=200)

needs_compiler = pytest.mark.skipif(NATIVE._table is None, reason="no C compiler here")


@needs_compiler
@given(TEXTS, st.integers(0, 9_000), st.integers(1, 9), st.integers(0, 9), st.booleans())
@example("x" * 100 + " " + "x" * 101, 0, 1, 0, False)
@example("``````(()) \nB\n(B\n(C", 5, 3, 4, True)
@example(" ".join(["caf\u00e9", "unaffable"] * 40), 5, 1, 0, False)
@example("lost \ud800 half", 5, 1, 0, False)
@example("word " * 48 + "word", 5, 1, 0, False)
@example("unaffable! " * 1_000, 5, 1, 0, False)
def test_c_finds_what_python_finds(text: str, tokens: int, turns: int, images: int, wants_json: bool) -> None:
    """The numbers agree up to rounding for any text and any request."""
    found, right = (
        featurizer.describe(
            text, input_tokens=tokens, turns=turns, tools=images, images=images, wants_json=wants_json
        ).vector
        for featurizer in (NATIVE, PLAIN)
    )
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=2e-6)


@needs_compiler
def test_features_are_thread_safe() -> None:
    """Texts described in parallel have the vectors that they have alone."""
    texts = [f"question {i}: why is {i * i} the square of {i}?" * (i % 7 + 1) for i in range(200)]
    alone = [NATIVE.describe(text).vector for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: NATIVE.describe(text).vector, texts * 5))
    assert all((one == other).all() for one, other in zip(alone * 5, together, strict=True))


class Wrong(Table):
    """A library that finds nothing in any text."""

    def __init__(self) -> None:
        pass

    def vector(self, text: str, cut: native.Cut, *sizes: int) -> np.typing.NDArray[np.float32]:
        return np.zeros(PLAIN.dims, np.float32)


def test_a_library_with_other_results_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """The compiled code is compared with Python before it is used, and a difference is logged."""
    assert PLAIN._proven(Wrong()) is None
    assert "features in C are off by" in caplog.text


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the source alone, and a home without compiled files."""
    source = tmp_path / "package" / "native.c"
    source.parent.mkdir()
    shutil.copy(native._SOURCE, source)
    monkeypatch.setattr(native, "_SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    native._library.cache_clear()
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    return source


@pytest.mark.parametrize("change", [{"HEADGATE_NATIVE": "0"}, {"PATH": "nowhere"}])
def test_without_a_compiler_python_is_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    """Vectors are the same if there is no compiler or it is switched off."""
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    plain = Featurizer()
    assert plain._table is None
    assert (plain.describe("Why is the sky blue?").vector == PLAIN.describe("Why is the sky blue?").vector).all()


@needs_compiler
def test_a_library_beside_the_source_needs_no_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container image has it compiled when it was built."""
    native.compiled(fresh.with_name(native._name()))
    monkeypatch.setenv("PATH", "nowhere")
    assert Featurizer()._table is not None


@needs_compiler
def test_it_is_compiled_once_into_the_users_own_folder(fresh: Path, tmp_path: Path) -> None:
    """A second process uses the first one's library, from a folder that only its owner can write."""
    table = native.opened(NATIVE._embedding, 48, NATIVE.dims)
    assert table is not None and len(table.vector("hello", HERE, 5, 2, 1, 0, 0, 0)) == NATIVE.dims
    (built,) = (tmp_path / "home" / "headgate" / "native").iterdir()
    assert built.parent.stat().st_mode & 0o077 == 0
    before = built.stat().st_mtime_ns
    assert Featurizer()._table is not None and built.stat().st_mtime_ns == before


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(fresh: Path, tmp_path: Path) -> None:
    """The code in it would be executed."""
    shared = tmp_path / "home" / "headgate" / "native"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert native._folder() != shared


def test_a_broken_library_is_ignored(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Features are then computed by Python."""
    fresh.with_name(native._name()).write_bytes(b"no library")
    with caplog.at_level("INFO"):
        assert Featurizer()._table is None
    assert "by Python alone" in caplog.text
