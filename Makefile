# Two commands on a fresh machine: `make demo` and `make test`. Both set up all they need under .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-celery test-model breaks check bench lock clean

# Reviews a folder of documents on real workers: make demo INPUT=folder MODEL=name
demo: $(VENV)/.demo
	$(BIN)/python -m examples.review.demo $(if $(INPUT),--input "$(INPUT)") $(if $(MODEL),--model "$(MODEL)")

# LOCKED=1: with the exact versions of requirements-ci.txt, as CI does, not the newest that pyproject.toml allows.
# Test files run side by side, five at once even on two cores: much of a test is waiting.
test: check
	$(BIN)/pytest --numprocesses $(or $(JOBS),5) --dist loadfile $(ARGS)

# Celery's own integration tests on the asyncio pool, a quarter of an hour: make test-celery ARGS="--pool prefork"; with our
# transport and our result backend, too: make test-celery ARGS="--transport callsheet --backend callsheet"
test-celery: $(VENV)/.dev
	$(BIN)/python -m tests.celery_integration $(ARGS)

# A small real model behind llama.cpp's server, compiled under .callsheet the first time (needs a C++ compiler): make test-model
test-model: $(VENV)/.dev
	$(BIN)/python -m tests.real_model $(ARGS)

# Breaks the connections to Redis at each command of a nested pipeline in turn, in five minutes; make test does at some
breaks: $(VENV)/.dev
	$(BIN)/python -m tests.breaks $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict examples tests/typing_api.py
	$(BIN)/lint-imports --no-cache

# Figures against peers, in one run: make bench ARGS="throughput --repeat 1"
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Callsheet into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Callsheet and what its tests need into $(VENV) ..."
ifdef LOCKED
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-ci.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
endif
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@echo "Installing the peers of the benchmarks into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@$(BIN)/python -m venv $(VENV)/peers/arq
	@$(VENV)/peers/arq/bin/python -m pip install --quiet --disable-pip-version-check 'arq>=0.28,<1' uvloop
	@touch $@

# Anew what CI installs: the newest versions that pyproject.toml allows, with their hashes
lock: $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@(head -1 requirements-ci.txt; echo 'setuptools>=77' | $(BIN)/uv pip compile pyproject.toml - --extra dev --universal \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --quiet) > $(VENV)/lock
	@mv $(VENV)/lock requirements-ci.txt

clean:
	rm -rf $(VENV) .callsheet .mypy_cache .ruff_cache .pytest_cache .hypothesis
