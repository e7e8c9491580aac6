# make serve | test | test-downstream | test-pythons | test-lowest | dist | docs | flaky | fuzz | lint | bench | chaos | chaos-campaigns | simulate-nodes | hostile | clean. Each does its own set-up, and needs Python 3.11 or newer with pip.
# make test ARGS="tests/bus -k resubscribe", make bench ARGS=--quick, PYTHON=python3.12 make serve

.DEFAULT_GOAL := help
.PHONY: help serve test test-downstream test-pythons test-lowest dist docs flaky fuzz lint bench chaos chaos-campaigns simulate-nodes hostile clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EXAMPLES := $(sort $(wildcard examples/*/pyproject.toml))
ARGS ?=

# The first that is new enough, unless one is named.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for it in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$it" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo "$$it"; break; }; done)
endif

help:
	@echo "make serve   install, and run the server with tangram.toml"
	@echo "make test    install what the tests need, and run all of them"
	@echo "make test-downstream   only those against the published plugins, in environments of their own"
	@echo "make test-pythons   the fast tests on every other Python from 3.11 on that this machine has; ARGS=--one for the newest alone"
	@echo "make test-lowest   the fast tests with the lowest versions of the dependencies that pyproject.toml allows"
	@echo "make docs    the site of the documentation, in .cache/site"
	@echo "make dist    wheel and sdist in dist/, checked, installed into an empty environment of every Python, and served"
	@echo "make flaky   how often tests are red by chance: 50 runs of what is not slow, 3 of everything; ARGS=\"--fast 5 --all 0\""
	@echo "make fuzz    1,000,000 generated inputs for all parsers of bytes from outside; ARGS=\"--seed N --inputs N TARGET ...\""
	@echo "make lint    ruff, mypy and the import contract"
	@echo "make bench   what is claimed about speed, measured here"
	@echo "make chaos   10,000 scripts of faults on a whole server with fakes, then real campaigns; ARGS=\"--seed N\" plays one"
	@echo "make simulate-nodes   10,000 seeds of faults on three simulated nodes with one placed plugin; ARGS=N runs N"
	@echo "make chaos-campaigns   the second part of make chaos alone: every fault over each example plugin, three seeds each"
	@echo "make hostile   31 attacks on servers beside good clients, and a table; ARGS=--short is the version of CI"
	@echo "make clean   remove what the others made"

serve: $(VENV)/.installed
	@exec $(BIN)/python -m tangram serve --config tangram.toml

# Runs a command and tells its seconds.
TIMED = timed() { began=$$(date +%s); what=$$1; shift; echo "$$*"; "$$@"; status=$$?; \
	echo "== $$what: $$(($$(date +%s) - began)) s"; return $$status; }; timed

# Most tests wait more than they compute: three workers keep two cores busy. One part alone (ARGS) runs in one process.
WORKERS ?= 3
PARALLEL := --numprocesses $(WORKERS) --dist worksteal

test: $(VENV)/.dev .cache/.e2e .cache/.downstream
	@$(TIMED) "tests" $(BIN)/python -m pytest $(or $(ARGS),$(PARALLEL))
	@$(if $(ARGS),,$(TIMED) "tests with FastAPI" $(DOWNSTREAM) -m pytest $(PARALLEL) tests/compat)

flaky: $(VENV)/.dev .cache/.e2e .cache/.downstream
	$(BIN)/python -m tests.flaky --downstream $(DOWNSTREAM) $(ARGS)

test-downstream: $(VENV)/.dev .cache/.e2e .cache/.downstream
	TANGRAM_ROUNDS=$${TANGRAM_ROUNDS:-20} TANGRAM_AWAY=$${TANGRAM_AWAY:-30} $(BIN)/python -m pytest tests/downstream $(ARGS)
	$(DOWNSTREAM) -m pytest tests/compat

test-pythons: $(VENV)/.dev
	@$(BIN)/python -m tests.release.pythons $(ARGS)

test-lowest: $(VENV)/.dev
	@$(BIN)/python -m tests.release.lowest

docs: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the site is in .cache/site: python3 -m http.server --directory .cache/site"

dist: $(VENV)/.dev
	@$(BIN)/python -m tests.release.dist

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(VENV)/.dev
	@$(BIN)/python -m tests.fuzz $(ARGS)

chaos: $(VENV)/.dev
	$(BIN)/python -m tangram.chaos.simulation $(or $(ARGS),--seeds 10000)
	$(if $(ARGS),,$(BIN)/python -m tests.chaos.campaigns)

hostile: $(VENV)/.dev
	$(BIN)/python -m tests.hostile $(ARGS)

simulate-nodes: $(VENV)/.dev
	$(BIN)/python -m tangram.chaos.nodes_simulation $(or $(ARGS),10000)

chaos-campaigns: $(VENV)/.dev
	$(BIN)/python -m tests.chaos.campaigns $(ARGS)

clean:
	rm -rf $(VENV) .cache build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# -- set-up: each stamp is newer than what it was made from, so that a second run has nothing to do ------------------

# Debian's python3 may come without ensurepip (python3-venv); pip can then put itself into the environment.
$(VENV)/.made:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "make: Python 3.11 or newer is needed; name one, as in: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		$(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --quiet --disable-pip-version-check --python $(BIN)/python install pip; }
	@touch $@

# One build environment for all of them: an isolated one each would be built anew six times.
$(VENV)/.installed: $(VENV)/.made pyproject.toml $(EXAMPLES)
	@echo "installing tangram and the examples"
	@$(PIP) install "hatchling>=1.27" editables
	@$(PIP) install --no-build-isolation --editable . $(patsubst %/pyproject.toml,--editable ./%,$(EXAMPLES))
	@touch $@

# pip before 25.1 has no --group: the list is read from pyproject.toml here.
DEV_LIST := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")
$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what development needs"
	@$(BIN)/python -c '$(DEV_LIST)' > $(VENV)/dev.txt
	@$(PIP) install --requirement $(VENV)/dev.txt
	@touch $@

# What is tested in the process is tested again where FastAPI is installed.
DOWNSTREAM := .cache/downstream/full/bin/python

.cache/.downstream: tests/downstream/prepare.py pyproject.toml $(VENV)/.dev
	@$(BIN)/python -m tests.downstream.prepare
	@touch $@

.cache/.e2e: tests/e2e/prepare.py $(VENV)/.dev
	@mkdir -p .cache
	@$(BIN)/python tests/e2e/prepare.py
	@touch $@
