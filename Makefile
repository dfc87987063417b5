# Every target sets up what it needs from nothing, says what it does, and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-all test-arm64 bench docs clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.core: pyproject.toml device_agent/pyproject.toml constraints.txt scripts/setup
	@scripts/setup core "$(PYTHON)" "$(VENV)"

$(VENV)/.dev: $(VENV)/.core
	@scripts/setup dev "$(PYTHON)" "$(VENV)"

setup: $(VENV)/.dev ## make .venv with everything for development

demo: $(VENV)/.core ## the whole loop on this machine (ARGS="--exit" for scripts)
	@$(BIN)/edgeship demo $(ARGS)

check: $(VENV)/.dev ## format, lint, types, layers, tidy
	@echo "check: format";  $(BIN)/ruff format --check --quiet . || { echo "next: make format"; exit 1; }
	@echo "check: lint";    $(BIN)/ruff check --quiet .
	@echo "check: types";   $(BIN)/mypy --no-error-summary
	@echo "check: layers";  $(BIN)/lint-imports --no-cache > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }
	@echo "check: tidy";    $(PYTEST) -q tests/tidy -m "not slow"

format: $(VENV)/.dev ## put the code into the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix-only --quiet .

test: $(VENV)/.dev ## everything but the long runs
	@echo "test: all tests but the long runs (make test-all runs those too)"
	@$(PYTEST) -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-all: $(VENV)/.dev ## every test, long runs too
	@$(PYTEST) -n $(WORKERS) --dist loadfile $(ARGS)

test-arm64: $(VENV)/.dev ## the agent on aarch64, in an emulated root of Debian's packages
	@echo "test-arm64: engines and one update on aarch64, emulated (minutes; the root is made once)"
	@$(PYTEST) tests/arm64 $(ARGS)

bench: $(VENV)/.dev ## every benchmark; appends to benchmarks/results.jsonl
	@$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/.dev ## generate docs/reference from the code
	@$(BIN)/python scripts/generate_docs.py

clean: ## remove what make made
	@rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
