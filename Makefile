# Two commands for users: `make lab` and `make test`. CI runs `make check`.
.DEFAULT_GOAL := help
PYTHON ?=  # which one to make .venv with; python3 if it is not given
BIN    := .venv/bin
PORT   ?= 8888
ARGS   ?=

.PHONY: help lab test setup check bench format js browser

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

lab: .venv/.ready  ## set up if needed, then open JupyterLab on the quickstart
	$(BIN)/workbench lab --port $(PORT) $(ARGS)

test: .venv/.ready node_modules/.ready browser  ## set up if needed, then run every test, browser tests included
	PATH="$(CURDIR)/$(BIN):$$PATH" npm test --silent
	$(BIN)/python -m pytest $(ARGS)

setup: .venv/.ready  ## create .venv with everything pinned, and the default model

.venv/.ready: pyproject.toml constraints.txt scripts/setup.sh
	PYTHON="$(PYTHON)" bash scripts/setup.sh
	@touch $@

node_modules/.ready: package.json package-lock.json .venv/.ready
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --no-audit --no-fund
	@touch $@

browser:  # the browser tests need a Chromium; a missing one is installed, or is an error that says what to do
	@bash scripts/browser.sh

js: node_modules/.ready  ## type-check the JavaScript and rebuild the committed bundles
	PATH="$(CURDIR)/$(BIN):$$PATH" npm run --silent check
	PATH="$(CURDIR)/$(BIN):$$PATH" npm run --silent build

check: .venv/.ready node_modules/.ready  ## what CI runs: format, lint, types, bundles up to date, every test, notebooks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) js
	git diff --exit-code --stat -- workbench/widgets/static
	$(MAKE) test

bench: .venv-peers/.ready  ## run the benchmarks, beside peers installed for them alone (minutes; a quiet machine)
	for script in benchmarks/bench_*.py; do .venv-peers/bin/python $$script || exit 1; done

.venv-peers/.ready: .venv/.ready scripts/peers.sh
	bash scripts/peers.sh

format: .venv/.ready  ## format the Python and rebuild the bundles
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(MAKE) js
