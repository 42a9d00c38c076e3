# Every target works alone on a fresh machine: what is missing is set up first.
.DEFAULT_GOAL := help
.PHONY: help setup check format test unit real long demo bench lock clean

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

test: unit real ## All tests

# A machine that is short of processors can make a test late: one that fails is run once more, alone, and the first
# run's failure stays in the output.
tested = $(BIN)/python -m pytest -m $(1) $(2) || \
	{ [ $$? = 1 ] && $(BIN)/python -m pytest -m $(1) --last-failed --last-failed-no-failures none; }

# Most of these wait for programs most of the time: one more of them than there are processors. Who has done its part
# takes of the others'.
unit: $(READY) ## Tests that boot nothing
	$(call tested,"not real and not cloud",--numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal)

# Rows of tests, three side by side (tests/conftest.py): most wait, and a VM takes a processor.
real: $(READY) ## Tests that boot machines and run agents
	$(call tested,"real and not cloud and not long",--numprocesses 3 --dist loadscope)

long: $(READY) ## Eight agents at once in VMs: an hour under emulation, so it is not among all tests
	$(BIN)/python -m pytest -m long

demo: $(READY) ## A real agent mends a real repository in a forked VM, without a key or a network
	@scripts/demo

bench: $(READY) ## Measure
	$(BIN)/python -m benchmarks

lock: $(READY) ## Write requirements.txt anew
	scripts/lock

clean: ## Remove what the other targets made here
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
