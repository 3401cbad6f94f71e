# Everything sets itself up: a virtual environment in .venv, made again when the lock file changes.
# `make demo` and `make test` are the two commands to know.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Debian keeps nginx where only root's path looks.
export PATH := $(PATH):/usr/sbin
unexport PYTHONDONTWRITEBYTECODE  # hundreds of processes start in a test run, and each would compile all it imports

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint bench bench-side bench-growth bench-dashboard bench-batch bench-gpu soak soak-local chaos fuzz slow \
  conformance faults sbom audit lock servers clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$$(sed -nE 's/^(uv==[0-9.]+).*/\1/p' requirements.lock)"
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes -r requirements.lock \
	  || $(PIP) install --quiet --require-hashes -r requirements.lock  # an index of one's own is known to pip only
	$(PIP) install --quiet --no-deps --no-compile torch==2.13.0
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install torch==2.13.0  # a build that wants CUDA's own packages
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

servers:  # Redis, PostgreSQL and nginx for the tests, from Debian's packages
	@deploy/test-servers.sh

demo: $(READY)  ## route a real workload between two real local models and see what was saved
	$(BIN)/headgate demo

serve: $(READY)  ## keep a gateway running with the embedded defaults
	$(BIN)/headgate serve

test: $(READY) servers lint  ## the whole suite, as CI runs it
	$(PYTEST) -n 4 --dist loadgroup --reruns 1 --rerun-show-tracebacks

lint: $(READY)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(READY)  ## CPU per request beside other gateways (installs them in their own environments)
	$(BIN)/python -m tests.bench

bench-side: $(READY) servers  ## nginx, Portkey, LiteLLM and Headgate at 1 to 256 connections, streams, memory
	$(BIN)/python -m tests.bench.side

bench-growth: $(READY)  ## cost against body size, keys, routes and journal
	$(BIN)/python -m tests.bench.growth

bench-dashboard: $(READY)  ## the dashboard's questions to a journal of a million decisions
	$(BIN)/python -m tests.bench.dashboard

bench-gpu: $(READY)  ## kernels and whole steps of local models, where there is a GPU
	$(BIN)/python -m tests.bench.local_gpu

bench-batch: $(READY)  ## a million prompts and twenty models planned
	$(BIN)/python -m tests.bench.batch --scale 1000000

soak: $(READY) servers  ## half an hour of mixed load with faults, and what grows
	$(BIN)/python -m tests.soak --minutes 30

chaos: $(READY) servers  ## servers killed, stopped and slowed under load, as a table of outcomes
	$(BIN)/python -m tests.chaos

fuzz: $(READY) servers  ## 100,000 bad requests and bodies
	$(BIN)/python -m tests.fuzz --cases 100000

slow: $(READY) servers  ## every test that make test leaves out for its length
	$(PYTEST) -m slow --timeout 3600

soak-local: $(READY)  ## the engine under ten minutes of load with cancels and a killed process
	$(BIN)/python -m tests.bench.local_load --minutes 10

conformance: $(READY)  ## the official SDKs against every surface and provider, as a table
	$(BIN)/python -m tests.conformance

faults: $(READY)  ## every stream fault and how it ends, as a table
	$(BIN)/python -m tests.faults

sbom: $(READY)  ## the bill of materials of the lock file (CycloneDX)
	$(BIN)/python deploy/sbom.py

audit: $(READY)  ## hashes, pins and licences of the lock file
	$(BIN)/python deploy/sbom.py --check

# torch stays out of the lock file: its CPU build is pinned in pyproject.toml and installed beside it, so that no
# resolver brings CUDA along. What torch itself needs is named here.
TORCH_NEEDS := transformers>=5.0 llguidance>=1.0 jinja2>=3.1 filelock sympy networkx fsspec typing-extensions setuptools

lock:  ## resolve pyproject.toml into requirements.lock
	echo $(foreach need,$(TORCH_NEEDS),'$(need)') | tr ' ' '\n' | $(BIN)/uv pip compile --quiet --upgrade \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --universal --python-version 3.11 \
	  --extra postgres --extra otel --extra ray --extra semantic --extra dev -o requirements.lock pyproject.toml -

clean:  ## remove what the targets above made
	rm -rf $(VENV) .headgate headgate.db headgate.db-wal headgate.db-shm
