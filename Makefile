# make help lists the targets. Needs Python 3.11+, a C compiler and make; the rest goes into $(VENV).
#
# The package isn't installed into $(VENV): its extension modules are built beside their sources, and a .pth file puts
# the source tree on the environment's path. Names of extension modules carry the Python that they are for, so that
# several environments share the tree:  make test VENV=.venv-3.13 PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
BUILD := build/$(patsubst .%,%,$(notdir $(VENV)))
BIN := $(VENV)/bin
PY := $(BIN)/python
TESTS ?=
SUITE ?= uvloop cpython aiohttp
NETPOLLER ?= auto
BENCH ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup build loadgen test model conformance demo bench sanitize check format wheel clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: VENV=$(VENV) PYTHON=$(PYTHON) TESTS='tests/test_x.py -k name'"

$(PY):
	$(PYTHON) -c 'import sys; sys.exit("netpoll_loop needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Dependency groups (PEP 735) need pip 25.1.
$(VENV)/.ready: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet --group build --group test --group check
	$(PY) -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "netpoll_loop_in_place.pth").write_text(f"{pathlib.Path.cwd()}\n")'
	touch $@

setup: $(VENV)/.ready ## create $(VENV) with everything that building, testing and checking need

build: setup ## build the extension modules in place (again: only what changed)
	@$(PY) tools/build.py $(BUILD)

test: build ## the engine's own tests, then the tests of the package
	CC=$(CC) sh tests/engine/run.sh plain
	$(PY) -m pytest $(TESTS)

model: ## the protocols of the threads, verified by spin: as they are, and with each seeded bug
	CC=$(CC) sh tests/model/run.sh

conformance: build ## uvloop's, CPython's and aiohttp's own suites on this loop: SUITE=uvloop NETPOLLER=dedicated
	@$(PY) -m conformance $(SUITE) --netpoller $(NETPOLLER)

loadgen:
	@$(MAKE) --no-print-directory --silent -C benchmarks/loadgen

demo: build loadgen ## aiohttp through the policy, under load, next to asyncio and uvloop
	@$(PY) -m benchmarks.demo

$(VENV)/.bench: pyproject.toml $(VENV)/.ready
	$(PY) -m pip install --quiet --group bench
	touch $@

bench: build loadgen $(VENV)/.bench ## every row next to every loop that is installed, tables and plots; --quick: BENCH=--quick
	$(PY) -m benchmarks --json build/benchmarks.json --plot build/plots $(BENCH)

sanitize: ## the engine's own tests under the thread, address and undefined-behaviour sanitizers
	CC=$(CC) sh tests/engine/run.sh tsan
	CC=$(CC) sh tests/engine/run.sh asan
	CC=$(CC) sh tests/engine/run.sh ubsan

check: setup ## ruff (lint and format) and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy netpoll_loop benchmarks examples

format: setup ## let ruff format the tree
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup ## a wheel in dist/
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what was built; the environments stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	$(MAKE) --no-print-directory -C benchmarks/loadgen clean
	rm -f netpoll_loop/_core/*.so netpoll_loop/_core/.*.so.new
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## and the environments
	rm -rf .venv .venv-* conformance/.cache
