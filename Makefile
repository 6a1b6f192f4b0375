# One command per task, the same for people and CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The theme otherwise announces its own successor at each build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

NUM_SAMPLES ?= 64
# Extra options for the command, for example `make run ARGS=--resume`.
ARGS ?=

# A browser for the page tests, the packages that a host needs for the `ray up` test over SSH, and the programs that check
# the files in deploy/, and the shells that completion is tested in. Debian starts the services among them.
PACKAGES := chromium fonts-liberation curl iproute2 openssh-server rsync cron prometheus systemd postgresql fish zsh

.PHONY: help setup upgrade system-packages image-steps run serve test check bench docs notebooks picture clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY) ## make .venv with everything the project needs

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a minute or more, about 2.5 GB on the disk"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip check
	@touch $@

upgrade: ## renew the pins in constraints.txt, and try them
	$(PYTHON) -m venv --clear build/upgrade
	build/upgrade/bin/pip install --quiet --disable-pip-version-check --upgrade pip
	build/upgrade/bin/python tests/constraints.py
	$(MAKE) setup check test

system-packages: ## install the system packages that some tests need (Debian, as root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(PACKAGES) >/dev/null

image-steps: ## run the Dockerfile's own steps in build/image and build/image-slim, without Docker
	$(PYTHON) tests/image.py build/image-slim build-slim >/dev/null
	$(PYTHON) tests/image.py build/image build >/dev/null

run: $(READY) ## tune on BTC-USD and keep the Pareto pick in artifacts/
	$(BIN)/python -m tune_jobs.pareto --num-samples $(NUM_SAMPLES) $(ARGS)

serve: $(READY) ## serve artifacts/best_pareto_lstm.pt on port 8000
	@echo "When it is ready: http://localhost:8000 in a browser, or $(BIN)/python -m forecast infer --json | curl -s localhost:8000/predict -d @-"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/serve run serve_app:app

# Slow tests spend part of their time waiting for clusters and servers, so two test processes share two cores well.
test: $(READY) ## run all tests
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(READY) ## lint, format, types, layers, and the docs' links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(MKDOCS) build --strict --quiet --site-dir build/site

bench: $(READY) ## run the benchmarks; serving needs wrk (apt-get install wrk)
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.tuning
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/prices skfolio
	PYTHONPATH=build/prices $(BIN)/python -W ignore -m benchmarks.forecasts
	$(BIN)/python -W ignore -m benchmarks.jobs walks
	$(BIN)/python -W ignore -m benchmarks.jobs widths
	$(BIN)/python -m benchmarks.serving
	PYTHONPATH=build/prices $(BIN)/python -W ignore -m benchmarks.universe stocks
	$(BIN)/python -W ignore -m benchmarks.universe kill
	$(BIN)/python -W ignore -m benchmarks.universe_serving

docs: $(READY) ## make docs/reference from the code, and the site in site/
	$(BIN)/python -m docs.make_reference
	$(MKDOCS) build --strict --quiet

notebooks: $(READY) ## execute docs/notebooks, and keep their outputs
	$(BIN)/python -m docs.make_notebooks

picture: $(READY) ## make docs/images/page.png, the served page with the pick of artifacts/
	$(BIN)/python -m docs.make_picture

clean: ## remove the environment and caches; leaves artifacts/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build site
