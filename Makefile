# Everything happens in a virtual environment of its own; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Installed first, so that the rest takes this build. On Linux the index's has CUDA (the environment is 5.8 GB); for the
# one without, TORCH="torch==2.13.0 --index-url URL" with the URL that pytorch.org gives for CPU.
TORCH ?= torch==2.13.0
DOCS := "mkdocs>=1.6,<2" "mkdocs-material>=9.6,<10" "mkdocstrings[python]>=0.29,<2"
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test lint bench e2e hostile docs release clean

run: $(VENV)/.installed  ## install, then run the offline default through Flower
	$(BIN)/fedlora run quickstart

test: $(VENV)/.installed-dev  ## install, then run the tests, two files at a time
	# In the order of their names: by default files with few tests, which take longest, would come last.
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev  ## format, style, types, import arrows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

e2e: $(VENV)/.installed-dev  ## whole deployments of real processes on loopback (minutes); SLOW=1 runs all
	FEDLORA_E2E=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "e2e$(if $(SLOW),, and not slow)" \
	  tests/api tests/bench tests/deploy tests/flower tests/generation tests/scaffold

hostile: $(VENV)/.installed-dev  ## one hostile device of each kind beside three honest ones (minutes)
	FEDLORA_E2E=1 $(BIN)/python -m pytest tests/deploy -m hostile

bench: $(VENV)/.installed-dev  ## speed and memory beside unsplit training
	$(BIN)/fedlora bench

docs:  ## build the site into build/site, in an environment of its own
	@echo "installing mkdocs into build/docs (a minute, once), then building the site"
	@$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet --disable-pip-version-check $(DOCS)
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict --quiet
	@echo "the site: build/site/index.html"

release:  ## build wheel and sdist into dist, and run the quickstart from the wheel in an empty environment
	rm -rf build/release dist
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --disable-pip-version-check build
	build/release/bin/python -m build --outdir dist .
	$(PYTHON) -m venv --clear build/release
	build/release/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	build/release/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd build/release && HF_HUB_OFFLINE=1 bin/fedlora run quickstart --out run --overwrite

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { \
	  echo "This Python cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): torch first, then the rest (a few minutes, once)"
	$(PIP) --upgrade pip
	$(PIP) $(TORCH)
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	@touch $@
