# Works with git, make and Python >= 3.10 with venv; everything else is fetched into .venv and .cache.

PYTHON ?= python3
FOLDER ?=
OUT    ?= full.jsonl
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PY   := $(BIN)/python
PIP  := $(PY) -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-sql test-py test-stateful test-matrix test-perf test-faults test-mutants \
        test-docker model lint format bench bench-full bench-targets bench-prototype soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## .venv with mqctl, its server and what the tests need

demo: $(VENV)/.installed ## mq at work: hashes every file of the standard library, or of FOLDER=...
	@$(BIN)/mqctl --embedded .cache/demo demo $(if $(FOLDER),"$(FOLDER)")

test: test-sql test-py ## the whole test suite, no clocks: pgTAP, then pytest

test-sql: $(VENV)/.installed ## pgTAP files (ARGS="--server debian tests/sql/ack.sql")
	@$(PY) tests/run_pgtap.py $(ARGS)

test-py: $(VENV)/.installed ## pytest (ARGS="-k enqueue"; MQ_TEST_SERVER=debian)
	@$(PY) -m pytest -q -n 2 --dist loadfile -m "not perf and not slow and not docker" $(ARGS)

test-stateful: $(VENV)/.installed ## mq against a simple model of it, new examples each time (ARGS="-k Core --hypothesis-seed=7")
	@MQ_STATEFUL_EXAMPLES=$${MQ_STATEFUL_EXAMPLES:-200} $(PY) -m pytest -q tests/py/test_stateful.py --timeout 0 $(ARGS)

test-matrix: $(VENV)/.installed ## pgTAP and the tests marked matrix on PostgreSQL 14 to 18
	@$(PY) tests/run_matrix.py $(ARGS)

test-perf: $(VENV)/.installed ## ratios of times, on a Debian server
	@MQ_TEST_SERVER=$${MQ_TEST_SERVER:-debian} $(PY) -m pytest -q -s -m perf --timeout 1800 $(ARGS)

test-faults: $(VENV)/.installed ## kills, crashes and full disks, the slow ones too
	@$(PY) -m pytest -q -m "faults and not perf" --timeout 900 $(ARGS)

test-mutants: $(VENV)/.installed ## breaks mq on purpose, patch by patch, and expects red
	@$(PY) tests/run_mutants.py $(ARGS)

test-docker: $(VENV)/.docker-installed ## pg_prove in the official image, where Docker answers
	@$(PY) -m pytest -q -s -m docker $(ARGS)

model: $(VENV)/.installed ## searches the model for what the engine must never do (Debian: apt install spin gcc)
	@$(PY) model/run.py

lint: $(VENV)/.lint-installed ## ruff, mypy --strict, squawk
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/squawk --config .squawk.toml sql/migrations/*.sql
	@echo "lint: clean"

format: $(VENV)/.lint-installed ## ruff format, and what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.bench-installed ## mq beside its peers, the cells that matter: ten minutes (ARGS=...), see bench/
	@$(PY) -m bench $(ARGS)

bench-full: $(VENV)/.bench-installed ## every cell, for hours; run again, it goes on (OUT=full.jsonl, ARGS=...)
	@$(PY) -m bench --full --pairs 5 --out bench/results/$(OUT) $(ARGS)

bench-targets: $(VENV)/.bench-installed ## what must hold, target by target; hours; run again, it goes on (ARGS="--only 'wal *'")
	@$(PY) -m bench targets $(ARGS)

bench-prototype: $(VENV)/.installed ## the comparison with the prototype (ARGS=...)
	@$(PY) bench/prototype.py $(ARGS)

soak: $(VENV)/.bench-installed ## half an hour at 80 % of mq's peak, with faults: nothing may grow (ARGS="--minutes 3")
	@$(PY) -m bench soak $(ARGS)

clean: ## removes .venv, .cache and everything else that was made here
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "mq needs Python 3.10 or newer; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "Python's venv is missing (Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV)"
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.lint-installed: $(VENV)/.installed
	@$(PIP) --editable '.[test,lint]'
	@touch $@

$(VENV)/.bench-installed: $(VENV)/.installed
	@$(PIP) --editable '.[test,bench]'
	@touch $@

$(VENV)/.docker-installed: $(VENV)/.installed
	@$(PIP) --editable '.[test,docker]'
	@touch $@
