# Two commands: `make quickstart` and `make test`. Both set up what they need; second runs reuse it.

UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
MODEL ?=
RUN ?= runs/quickstart

# Every process that a run starts would otherwise compile torch and Megatron-Core anew, for 7 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow fuzz check docs clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   train a real 135M chat model with DPO and DPOP on this machine's CPU (MODEL=folder or hub name)"
	@echo "make test         the default tests;  make test-slow: the end-to-end tests;  make check: linter, formatter, types"
	@echo "make fuzz         damaged and hostile inputs through the commands, for two minutes"
	@echo "make docs         the documentation as a site in site/"

.uv/bin/uv:
	python3 -m pip install --quiet --disable-pip-version-check --target .uv uv

ifeq ($(UV),.uv/bin/uv)
NEEDS_UV := .uv/bin/uv
endif

.venv/.quickstart: pyproject.toml uv.lock | $(NEEDS_UV)
	@echo "Setting up the Python environment in .venv (about 5 GB, once) ..."
	$(UV) sync --quiet --locked --inexact --extra quickstart
	@touch $@

.venv/.dev: pyproject.toml uv.lock | $(NEEDS_UV)
	@echo "Setting up the Python environment in .venv (about 5 GB, once) ..."
	$(UV) sync --quiet --locked --inexact --extra quickstart --extra dev
	@touch $@

# What only documents and the end-to-end tests need: the site, and lm-evaluation-harness.
.venv/.docs: .venv/.dev
	$(UV) sync --quiet --locked --inexact --extra docs
	@touch $@

.venv/.eval: .venv/.dev
	$(UV) sync --quiet --locked --inexact --extra eval
	@touch $@

quickstart: .venv/.quickstart
	.venv/bin/python examples/quickstart/run.py --run $(RUN) --uv $(UV) $(if $(MODEL),--model $(MODEL))

test: .venv/.dev
	.venv/bin/python -m pytest -q

test-slow: .venv/.dev .venv/.docs .venv/.eval
	.venv/bin/python -m pytest -q -m slow

# Damaged and hostile inputs for two minutes, from a fresh seed that it prints.
fuzz: .venv/.dev
	.venv/bin/python tools/fuzz.py --seconds 120

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Warnings are errors (mkdocs.yml). The variable silences a notice about another major version of mkdocs.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

clean:
	rm -rf .venv .uv runs site
