"""Other gateways, each installed in an environment of its own and run as its makers recommend for production.

LiteLLM's proxy: one worker, no database, no callbacks, `LITELLM_MODE=PRODUCTION`, errors only in its log, the
price map that it brings along, a random master key. It routes to one model, caches nothing and keeps no
journal, so it does less than Headgate with everything on.

Portkey's gateway (npm): `NODE_ENV=production`, no config, the provider named by headers as its documentation has it. As
released it answers 500 to every streamed request on Node 20 (`TypeError: immutable`); the one expression at fault is
replaced in a copy, so that streams can be compared.

nginx (Debian): one worker, kept-alive upstream connections, no buffering, no log: what a proxy without any knowledge
of what passes costs.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.targets import Target, started
from tests.ports import free_port

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
    quiet: Any = {
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with started("litellm", command, url, key, "mini", folder / "litellm.log", **quiet) as target:
        yield target


PORTKEY = "@portkey-ai/gateway@1.15.2"
PORTKEY_FAULT = ("r?(i=t,c=s)", "r?(i=this.context.isStreaming?new Response(t.body,t):t,c=s)")


def install_portkey(rivals: Path) -> Path | None:
    """Its environment's folder; None where there is no npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return None
    home = rivals / "portkey"
    build = home / "node_modules" / "@portkey-ai" / "gateway" / "build"
    if not (build / "start-server.js").exists():
        home.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", PORTKEY]
        subprocess.run(npm, cwd=home, check=True)
    text = (build / "start-server.js").read_text()
    (build / "start-server-streams.js").write_text(text.replace(*PORTKEY_FAULT))
    return home


@contextmanager
def portkey(folder: Path, home: Path, upstream_url: str) -> Iterator[Target]:
    port = free_port()
    script = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server-streams.js"
    command = ["node", str(script), f"--port={port}", "--headless"]
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {upstream_url}/v1")
    url = f"http://127.0.0.1:{port}"
    log = folder / "portkey.log"
    with started("portkey", command, url, "sk-bench", "mini", log, headers=headers, NODE_ENV="production") as target:
        yield target


@contextmanager
def nginx(folder: Path, upstream_url: str) -> Iterator[Target]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"""
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.error.log error;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 2m; client_body_temp_path {folder};
  proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  keepalive_requests 100000000;
  upstream up {{ server {upstream_url.removeprefix("http://")}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
    )
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config), "-p", str(folder)]
    with started("nginx", command, f"http://127.0.0.1:{port}", "none", "m", folder / "nginx.log") as target:
        yield target


def has_nginx() -> bool:
    return shutil.which("nginx") is not None or Path("/usr/sbin/nginx").exists()
