# make demo: see segpipe work. make test: everything a change must pass. make docs: the site, in site/.
# Each installs into .venv first.
PYTHON ?= python3
# --no-cache-dir keeps a container image small
PIP_CACHE ?=
DEMO ?= segpipe-demo
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test docs install browser format clean

demo: install
	$(BIN)/segpipe demo -o $(DEMO)

test: install browser
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

docs: install
	$(BIN)/mkdocs build --strict --quiet

install: $(INSTALLED)

# The stamp is newer than pyproject.toml once the install went through, so a second run starts at once.
$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "'$(PYTHON)' was not found. segpipe needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); segpipe needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments (module venv or ensurepip is missing): apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-input $(PIP_CACHE) -e '.[test]'
	@touch $@

# Tests open pages in Chromium. Root installs it where apt-get is; elsewhere these tests skip and name what they need.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	  || echo "Chromium is not installed: tests that open pages will skip. To install it: apt-get install chromium"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info segpipe-demo
