# Everything a developer calls. Two of them are all that a newcomer needs: `make run` and
# `make test`; both set up what they need in .venv.

# The first Python that runs and is new enough: a name on the path may be a version manager's
# stand-in for a version that is not switched on.
FIT := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
BIN := .venv/bin
SOURCES := $(shell find src -name '*.py' -o -name py.typed) pyproject.toml README.md LICENSE

# Processes that the tests are spread over: most of them wait, so two for each of two cores.
TESTERS := 4
# The tests start some hundred Pythons, and none of them has to compile anything twice.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check format test-engines bench bench-micro hardship lock clean

help: ## show what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: .venv/installed ## start the proxy, with a demo upstream when none is configured
	@exec $(BIN)/llmproxy serve --demo

test: check ## all checks and all tests
	@command -v nginx >/dev/null || echo "nginx is not installed: the tests of nginx/ are left out."
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

check: .venv/dev .venv/installed ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev ## put the sources in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-engines: .venv/dev .venv/installed ## real engines behind the proxy (builds them first; minutes)
	$(BIN)/python -m tests.engines.setup
	$(BIN)/python -m pytest tests/engines

bench: .venv/dev .venv/installed ## the proxy beside nginx and others (sets the others up first; some 12 minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check matplotlib
	$(BIN)/python -m benchmarks.load --write-results

bench-micro: .venv/dev .venv/installed ## what each part costs by itself, in ns (some 30 seconds)
	$(BIN)/python -m benchmarks.micro

hardship: .venv/dev .venv/installed ## what the server withstands, each figure with its limit (some 20 minutes)
	$(BIN)/python -m benchmarks.hardship --write-page

lock: .venv/dev ## write the versions of all dependencies down anew
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --no-header \
	  --no-annotate --upgrade -o requirements/run.txt
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --no-header \
	  --no-annotate -c requirements/run.txt -o requirements/dev.txt

clean: ## remove what was built and installed
	rm -rf .venv .bench .engines build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if $$python -c '$(FIT)' 2>/dev/null; then exec $$python -m venv .venv; fi; \
	done; \
	echo "No Python 3.11 or newer with venv was found$(PYTHON:%= as %). Install one (on Debian and" \
	  "Ubuntu python3-venv too), or set PYTHON=/path/to/python."; exit 1
	@touch $@

.venv/run: .venv/python requirements/run.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/run.txt
	@touch $@

.venv/dev: .venv/run requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

# What runs and what is tested is the installed package, not the source tree.
.venv/installed: .venv/run $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	@touch $@
