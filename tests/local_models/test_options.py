"""The options of an engine, and which are refused before it starts."""

import pytest

from local_models.options import ENGINE_OPTIONS, SERVER_OPTIONS, EngineOptions, faults, setting_of, with_setting
from local_models.settings import Setting


def test_defaults_are_valid() -> None:
    """Every option may be stated with its default or left out."""
    defaults = {name: getattr(EngineOptions(), name, None) for name in SERVER_OPTIONS}
    assert list(faults(defaults)) == []
    assert list(faults({"models": {"a": "tiny-small"}, "threads": 2, "device": "cuda:1", "most_waiting": 0})) == []


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("kv_token", 5, "unknown; known are models, threads"),
        ("kv_tokens", "many", "whole number of at least 1"),
        ("kv_tokens", 0, "whole number of at least 1"),
        ("draft_tokens", -1, "whole number of at least 0"),
        ("threads", True, "whole number"),
        ("int8", 1, "must be true or false"),
        ("device", "tpu", "'tpu' is none of auto, cpu, cuda"),
        ("settings", "best", "'best' is none of given, auto"),
        ("dtype", "int8", "'int8' is none of auto, float32"),
        ("draft_model", 3, "must be text"),
        ("models", ["tiny-small"], "must be names with a folder each"),
        ("models", {"a": 1}, "must be names with a folder each"),
    ],
)
def test_a_fault_has_the_options_name(name: str, value: object, fault: str) -> None:
    """Unknown names, wrong types and unknown values are refused."""
    ((told, why),) = faults({name: value, "int8" if name != "int8" else "native": True})
    assert told == name and fault in why


def test_a_setting_is_converted_to_options_and_back() -> None:
    """Only that part of the options is read."""
    setting = Setting(True, 64, 4, False)
    assert setting_of(with_setting(EngineOptions(kv_tokens=128), setting)) == setting
    assert with_setting(EngineOptions(kv_tokens=128), setting).kv_tokens == 128


def test_help_describes_each_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the default; the example configuration refers its readers to it."""
    from local_models.serve import main

    monkeypatch.setattr("sys.argv", ["local_models", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().out.split())
    for name, meaning in ENGINE_OPTIONS.items():
        default = getattr(EngineOptions(), name)
        assert meaning in told and (default is None or f"{meaning} (default {default})".lower() in told.lower()), name
