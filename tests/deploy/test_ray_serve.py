"""The template for Ray Serve LLM is consistent, and its comment is a configuration that loads."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from gateway.config.load import load

TEMPLATE = Path(__file__).parents[2] / "deploy" / "ray-serve.yaml"


def test_the_comment_configures_headgate_for_it(tmp_path: Path) -> None:
    """The provider and model in the comment are valid and name the model that the template serves."""
    comment = [line.removeprefix("#") for line in TEMPLATE.read_text().splitlines() if line.startswith("#   ")]
    config = tmp_path / "headgate.toml"
    config.write_text(textwrap.dedent("\n".join(comment)))
    loaded = load(str(config), {})
    (application,) = yaml.safe_load(TEMPLATE.read_text())["applications"]
    (served,) = application["args"]["llm_configs"]
    (model,) = loaded.models
    assert model.upstream_name == served["model_loading_config"]["model_id"]
    assert model.context_tokens == served["engine_kwargs"]["max_model_len"]


def test_it_downloads_nothing() -> None:
    """The model is a folder on the nodes, and the application is Ray's own OpenAI server."""
    (application,) = yaml.safe_load(TEMPLATE.read_text())["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    for served in application["args"]["llm_configs"]:
        assert served["model_loading_config"]["model_source"].startswith("/")
