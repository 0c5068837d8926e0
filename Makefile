# `make help` lists the targets. Each sets up .venv when it needs to, and again when the requirements change.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# A worker per core; the tests of a file stay together, because they share what takes long to make, and files that take long run
# first (tests/conftest.py), which those with many tests would otherwise do
PYTEST_FLAGS ?= -q -n auto --dist loadfile --no-loadscope-reorder
BENCH_FLAGS ?=
# A package index to take torch from besides the configured one, for example https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := .venv/bin
# --no-compile: byte code is written at import, for the modules that are used
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
REQUIREMENTS := pyproject.toml constraints.txt
# Old versions of one distribution (not those of constraints.txt), which tests convert from in processes of their own
LEGACY := $(addprefix .venv/legacy/,spikingjelly-0.0.0.0.12 spikingjelly-0.0.0.0.14)
# mypy wants folders that hold Python files
CHECKED := snngraph tests $(if $(wildcard benchmarks/*.py),benchmarks) $(if $(wildcard examples/*.py),examples)

.PHONY: help venv demo test check format bench build clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no python3 found; set PYTHON=" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snngraph needs Python 3.11 or newer; set PYTHON=")'
	"$(PYTHON)" -m venv .venv

# What the demo needs: the package and the CPU engines.
.venv/demo.stamp: $(REQUIREMENTS) | .venv/bin/python
	$(PIP) -e '.[cpu,demo]'
	@touch $@

# All of it: the test and development tools, and the foreign SNN libraries the tests convert from.
.venv/dev.stamp: $(REQUIREMENTS) requirements-interop.txt | .venv/bin/python
	$(PIP) -e '.[dev,demo]'
	$(PIP) --no-deps -r requirements-interop.txt
	@touch .venv/demo.stamp $@

.venv/legacy/%: | .venv/dev.stamp
	$(filter-out -c constraints.txt,$(PIP)) --no-deps --target $@ $(subst -,==,$*)

venv: .venv/dev.stamp $(LEGACY) ## Create .venv with everything for development

demo: .venv/demo.stamp ## Train, compile and verify a small network; results in out/demo
	$(BIN)/snngraph demo --out out/demo

test: .venv/dev.stamp $(LEGACY) ## Run the whole test suite (PYTEST_FLAGS="-q -k name" for a part)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: .venv/dev.stamp $(LEGACY) ## Formatting, lint, types, then the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

format: .venv/dev.stamp ## Format the code and apply safe lint fixes
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

bench: .venv/dev.stamp ## Time the engines against their peers (BENCH_FLAGS)
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

build: .venv/dev.stamp ## Build the wheel into dist/
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## Remove .venv, caches and everything built
	rm -rf .venv build dist out snngraph.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
