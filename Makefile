# Two commands: `make quickstart` and `make test`. Both set up what they need; second runs reuse it.

UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
MODEL ?=
RUN ?= runs/quickstart
TESTING := "pytest>=8.3" "pytest-timeout>=2.3" "hypothesis>=6.120"

# What the versions of torch, Megatron-Core and transformers matter to: launch, products, attention, log-probabilities,
# gradients at two layouts, a step's counts (not of FLOPs and bytes: before torch 2.13 rows of logits are padded to whole
# tiles).
OLDEST := tests/megatron_dpop/models tests/megatron_dpop/logprobs tests/megatron_dpop/training/test_step_counts.py \
	tests/megatron_dpop/training/test_gradients.py tests/megatron_dpop/runtime/test_launch.py \
	tests/megatron_dpop/runtime/test_cpu_products.py

# Every process that a run starts would otherwise compile torch and Megatron-Core anew, for 7 seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow test-exhaustive test-cluster test-oldest fuzz check docs clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   train a real 135M chat model with DPO and DPOP on this machine's CPU (MODEL=folder or hub name)"
	@echo "make test         the default tests;  make test-slow: the end-to-end tests;  make check: linter, formatter, types"
	@echo "make test-exhaustive  more layouts, kills and recipes than CI's time allows: before a release"
	@echo "make fuzz         damaged and hostile inputs through the commands, for two minutes"
	@echo "make test-oldest  what depends on versions, on the oldest ones that pyproject.toml allows"
	@echo "make test-cluster the SLURM scripts on a private SLURM of this machine (slurm-wlm and munge installed)"
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

# The oldest versions that pyproject.toml allows. CUDA's libraries, most of the download, are the lock file's all the same.
# Of Transformer Engine the Python part alone, for tests/transformer_engine_on_cpu, and out of others' way.
.venv-oldest/.ready: pyproject.toml uv.lock | $(NEEDS_UV)
	@echo "Setting up the oldest supported versions in .venv-oldest ..."
	$(UV) venv --quiet --clear --python 3.12 .venv-oldest
	$(UV) export --quiet --locked --no-hashes --no-emit-project | grep '^nvidia-' >.venv-oldest/cuda.txt
	$(UV) pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
		--override .venv-oldest/cuda.txt --editable . $(TESTING)
	$(UV) pip install --quiet --python .venv-oldest/bin/python einops onnx onnxscript
	$(UV) pip install --quiet --target .venv-oldest/emulated --no-deps transformer_engine==2.20.2
	@touch $@

quickstart: .venv/.quickstart
	.venv/bin/python examples/quickstart/run.py --run $(RUN) $(if $(MODEL),--model $(MODEL))

# Two processes, a file of tests each at a time: many tests wait for one process of theirs. In the order of the files:
# by their numbers of tests, those with one long test would come last, and leave a core idle.
test: .venv/.dev
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.dev .venv/.docs .venv/.eval
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --timeout 1200 -m "slow and not exhaustive" --ignore tests/slurm

test-exhaustive: .venv/.dev
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout 1200 -m exhaustive

# The scripts of examples/slurm on a private SLURM of two nodes.
test-cluster: .venv/.dev
	.venv/bin/python -m pytest -q --timeout 1200 -m slow tests/slurm

# Damaged and hostile inputs for two minutes, from a fresh seed that it prints.
fuzz: .venv/.dev
	.venv/bin/python tools/fuzz.py --seconds 120

test-oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -q -p no:cacheprovider $(OLDEST) \
		-k "not useful_ones and not formula_says and not allocates_no_more"
	.venv-oldest/bin/python -m pytest -q -p no:cacheprovider -m slow -k "bf16 or fails_ends" \
		tests/megatron_dpop/commands/test_train_command.py
	PYTHONPATH=tests/transformer_engine_on_cpu:.venv-oldest/emulated .venv-oldest/bin/python -m pytest -q -p no:cacheprovider -m gpu \
		-k "log_probabilities and (bf16 or blockwise) and not ends and not moments" tests/megatron_dpop/training/test_gpu.py

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Warnings are errors (mkdocs.yml). The variable silences a notice about another major version of mkdocs.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

clean:
	rm -rf .venv .venv-oldest .uv runs site
