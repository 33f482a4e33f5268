# The same verbs here and in CI; `make help` lists them.
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

.PHONY: help install demo test check test-services soak docs clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## the environment with its pinned dependencies; of another torch: TORCH_INDEX=ADDRESS

demo: $(VENV)/.installed ## train the toy example from demonstrations to an aligned policy: make demo ARGS="seed=1"
	$(BIN)/rlhf run stages/recipes/demo.yaml $(ARGS)

test: check ## ruff, mypy, and every test that needs no service, accelerator or patience
	$(PYTEST) -m "not services and not soak and not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-services: $(VENV)/.installed-dev ## tests against services
	$(PYTEST) -q -m "services and not soak and beside" -n $(WORKERS) --dist load $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -q -m "services and not soak and not beside" $(ARGS) || [ $$? -eq 5 ]

soak: $(VENV)/.installed-dev ## long tests
	@$(PYTEST) -q -m soak $(ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo "no tests are marked soak yet"; }

docs: $(VENV)/.installed-dev ## the documentation as a site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment, caches and build files; runs/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its pin alone, so that a build already at hand is taken and nothing drags in another.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed $@
