# Every target works alone on a fresh machine: what is missing is set up first.
.DEFAULT_GOAL := help
.PHONY: help setup check format test unit real quick long demo pictures bench lock clean

BIN := .venv/bin
READY := .venv/.ready

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

$(READY): requirements.txt pyproject.toml scripts/setup
	@scripts/setup

setup: ## Install system packages and the Python environment, where they are missing
	@scripts/setup

check: $(READY) ## Format, lint, types, import directions
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Bring the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What each group and each part is: docs/testing.md.
test: $(READY) ## All tests but the long ones, with a summary by area
	$(BIN)/python -m tests unit real

unit: $(READY) ## Tests that boot nothing
	$(BIN)/python -m tests unit

real: $(READY) ## Tests that boot machines and run agents
	$(BIN)/python -m tests real

quick: check ## Lint, types, and the unit tests of what changed
	$(BIN)/python -m tests quick

long: $(READY) ## Storms, matrices and soaks, in parts of at most an hour: make long PART=vms
	$(BIN)/python -m tests long $(PART)

demo: $(READY) ## A real agent mends a real repository in a forked VM, without a key or a network
	@scripts/demo

pictures: $(READY) ## Take pictures of the page, with a seeded demo, into build/pictures
	$(BIN)/python -m tests.web.pictures

bench: $(READY) ## Measure
	$(BIN)/python -m benchmarks

lock: $(READY) ## Write requirements.txt anew
	scripts/lock

clean: ## Remove what the other targets made here
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
