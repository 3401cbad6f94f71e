"""Other gateways, each installed in an environment of its own and run as its makers recommend for production.

LiteLLM's proxy: one worker, no database, no callbacks, `LITELLM_MODE=PRODUCTION`, errors only in its log, the
price map that it brings along, a random master key. It routes to one model, caches nothing and keeps no
journal, so it does less than Headgate with everything on.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.targets import Target, started
from tests.live import free_port

PACKAGE = "litellm[proxy]"


def install_litellm(rivals: Path) -> Path:
    """Its environment's folder; the newest release that installs. Made once and kept."""
    home = rivals / "litellm"
    ready = home / ".ready"
    if not ready.exists():
        rivals.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, PACKAGE], check=True)
        ready.touch()
    return home


def version_of(home: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.check_output([str(home / "bin" / "python"), "-c", code], text=True).strip()


@contextmanager
def litellm(folder: Path, home: Path, upstream_url: str) -> Iterator[Target]:
    key, port = f"sk-{secrets.token_hex(24)}", free_port()
    config = folder / "litellm.yaml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "mini",
                        "litellm_params": {
                            "model": "openai/mini", "api_base": f"{upstream_url}/v1", "api_key": "sk-bench",
                        },
                    }
                ],
                "general_settings": {"master_key": key},
                "litellm_settings": {"json_logs": True, "telemetry": False},
            }
        )
    )  # fmt: skip
    command = [
        str(home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port),
        "--num_workers", "1",
    ]  # fmt: skip
    quiet = {
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with started("litellm", command, url, key, "mini", folder / "litellm.log", **quiet) as target:
        yield target
