# Every target sets up what it needs in .venv, once, and again when pyproject.toml or constraints.txt change.
# PYTHON chooses the interpreter of a new .venv (3.11 or 3.12); ARGS goes to the command.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: play test test-slow lint train bench evaluate report clean help

play: $(VENV)/.has-play ## play a world in a window; with no display, a scripted agent plays into a clip
	$(BIN)/python -m inferix_env.play $(ARGS)

test: $(VENV)/.has-dev ## the quick tests
	$(BIN)/python -m pytest -q $(ARGS)

test-slow: $(VENV)/.has-dev ## the slow tests: about half an hour
	$(BIN)/python -m pytest -q -m "slow and not gpu" $(ARGS)

lint: $(VENV)/.has-dev ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

train: $(VENV)/.has-train ## collect data from a real env, train a world, write it to worlds/
	$(BIN)/python -m engine.training --env VizdoomTakeCover-v1 --out worlds/doom_take_cover \
		--card inferix_env/worlds/doom_take_cover/card.json $(ARGS)

bench: $(VENV)/.has-core ## a step, many worlds in one engine, the KV cache; rows go to out/benchmarks/
	$(BIN)/python -m benchmarks.step --out out/benchmarks/step.json $(ARGS)
	$(BIN)/python -m benchmarks.many_worlds --out out/benchmarks/many_worlds.json $(ARGS)
	$(BIN)/python -m benchmarks.kv --out out/benchmarks/kv.json $(ARGS)

evaluate: $(VENV)/.has-evaluate ## dream against reality
	$(BIN)/python -m inferix_env.evaluation --world doom-take-cover $(ARGS)

report: $(VENV)/.has-evaluate ## fidelity, ranking and drift as one page
	$(BIN)/python -m inferix_env.evaluation report --world doom-take-cover $(ARGS)

clean: ## remove caches and builds; .venv, data/, runs/, out/ and worlds/ stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# venv makes bin/pip last: where it is missing, there is no whole environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "$(PYTHON) is not Python 3.11 or 3.12. Name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.has-core: $(SOURCES) | $(BIN)/pip
	$(INSTALL) .
	@touch $@

$(VENV)/.has-%: $(SOURCES) | $(BIN)/pip
	$(INSTALL) ".[$*]"
	@touch $@
