# The two commands of the README: `make train` and `make test`. Each sets up .venv the first time.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# Two more than there are cores, for tests that wait: for processes, deadlines, an engine's thread. They begin with
# neighbouring tests, which share fixtures, and take from each other what is left in the end.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 2))')
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist worksteal
# Whatever the environment says, what one process of the tests has compiled is read by the others, and the next time.
export PYTHONDONTWRITEBYTECODE =
# Anything but empty: the parts of `make acceptance` that say most in the least time.
SHORT ?=

# The environments of a label, side by side. One that tox could not make counts as skipped for it, and as failed here.
define tox
$(BIN)/tox run-parallel -m $(1) --parallel $(WORKERS) --parallel-no-spinner --result-json .tox/results.json
@$(BIN)/python -c 'import json, sys; found = json.load(open(".tox/results.json"))["testenvs"]; \
  sys.exit(", ".join(f"tox skipped {name}" for name in found if found[name].get("result", {}).get("skipped")) or None)'
@rm -rf agentrl_core.egg-info
endef

.PHONY: help setup train check test lint docs dist acceptance compatibility clients cluster pretrained servers benchmarks clean

help:
	@echo "make train        train the bundled math agent on this machine (ARGS='training.steps=20' adds settings)"
	@echo "make check        lint, type check, and run core's tests but for those marked slow: 4 minutes on two cores"
	@echo "make test         lint, type check, and run the tests of core, then each plugin's in an environment of its own"
	@echo "make acceptance   run core's tests that are marked long; train every bundled agent on three seeds, and one in an"
	@echo "                  environment of its own; print the table; then make compatibility,"
	@echo "                  make cluster, make pretrained and make servers (SHORT=1: one seed, and the main part of those)"
	@echo "make compatibility test the gateway and plugins with older SDKs, and the page of agentrl view in a browser"
	@echo "make cluster      train on a Ray cluster of two nodes on this machine, and lose one of them: 5 minutes (its short form is in make test)"
	@echo "make pretrained   train SmolLM2-135M, and hold the engine to it: an hour, and 5 GB (SHORT=1: 8 minutes)"
	@echo "make servers      test the vLLM plugin on real servers, installation included: 20 minutes, and 4 GB"
	@echo "make benchmarks   print the speed tables"
	@echo "make docs         build the documentation into site/; a broken link is an error"
	@echo "make dist         build the wheel and the source archive of core and of every plugin into dist/"
	@echo "make clean        remove what the other commands made"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"agentrl needs Python 3.11 or later and {sys.executable} is {v[0]}.{v[1]} (make PYTHON=python3.12 ...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -rf agentrl_core.egg-info  # left by a build, its older entry points would hide the installed ones from tests
	@touch $@

train: setup
	$(BIN)/agentrl train math --config agents/agentrl_agents/configs/quickstart.yaml $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(PYTEST) -m "not slow"

test: lint dist
	TEST_DISTRIBUTIONS=dist $(PYTEST) -m "not long"
	$(call tox,plugins)

compatibility: dist
	@$(PYTHON) -m tests.browser.chromium >/dev/null || echo "left out: tox -e view, $$($(PYTHON) -m tests.browser.chromium)"
	@$(PYTHON) -m tests.browser.chromium >/dev/null || export TOX_SKIP_ENV=view; $(call tox,compatibility)

acceptance: setup
	$(PYTEST) -m long $(if $(SHORT),--short)
	$(BIN)/python -m tests.acceptance $(if $(SHORT),--short)
	$(BIN)/python -m tests.acceptance.fuzzing $(if $(SHORT),--examples 50)
	$(BIN)/python -m tests.acceptance.killing $(if $(SHORT),--times 3)
	$(MAKE) compatibility clients $(if $(SHORT),,cluster) pretrained servers SHORT=$(SHORT)

cluster: dist
	$(BIN)/tox run -e ray -- -m long
	@rm -rf agentrl_core.egg-info

clients: setup
	$(BIN)/python -m tests.acceptance.clients $(if $(SHORT),--short)

pretrained: dist
	$(BIN)/tox run -e smollm2 -- -m slow -s $(if $(SHORT),-k "would_learn or (math-lora-seed0 and not multi_turn)")
	@rm -rf agentrl_core.egg-info

servers: dist
	$(BIN)/tox run -e vllm-servers $(if $(SHORT),-- -k "TestVllm or learns_what_it_learns and math")
	@rm -rf agentrl_core.egg-info

benchmarks: setup
	$(BIN)/python -m tests.benchmarks

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: dist/.built

dist/.built: .venv/.installed $(wildcard $(shell git ls-files core agents plugins scripts README.md LICENSE pyproject.toml))
	$(BIN)/python scripts/build_distributions.py dist
	@touch $@

clean:
	rm -rf .venv .tox site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
