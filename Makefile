# make demo    sets up and runs the whole story on real images of digits; ends with a report to look at
# make test    sets up and runs the tests           make lint   style and types           make setup   only sets up
# make docs    the documentation as a site in site/, which can be read without a server
#
# PYTHON=python3.12 chooses the interpreter, VENV=folder the virtual environment, ARGS="..." is passed on.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
READY := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: demo test lint format docs setup
.DEFAULT_GOAL := setup

demo: $(READY)
	$(VENV)/bin/twofold demo $(ARGS)

# One thread: the tests' tensors are small, and several threads only wait for each other; so files share the cores.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix --exit-zero
	$(VENV)/bin/ruff format

docs: $(READY)
	$(VENV)/bin/python docs/make_presets.py
	$(VENV)/bin/python -m mkdocs build --strict $(ARGS)

setup: $(READY)

# The file says that the environment is complete; it is made anew when what to install has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "twofold needs Python 3.11 or newer; '$(PYTHON)' is not that. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time this takes a few minutes (PyTorch is large)"
	$(VENV)/bin/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
