# The only door: everything that can be done here is a target. The first one that needs it makes .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

find_python = for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(or $(shell $(find_python)),$(error no Python 3.11 or newer with ensurepip was found; name one: make PYTHON=...))
VENV ?= $(if $(LATEST),.venv-latest,.venv)
BIN := $(VENV)/bin
# With LATEST, the newest of everything that can be had; what was the newest when it was last installed need not be any more.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint .ci/constraints.txt)
# A worker of pytest's, a process that a test starts, and a worker of shmgen's each write a file of their own.
COVER := --cov --cov-report=
EXTRAS := cli,hdf5,plot,remote,tensorflow
PYTEST = $(BIN)/python -m pytest -p no:benchmark -n 2 --dist worksteal $(if $(COVERAGE),$(COVER) --cov-append)
MINUTES ?= 10
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test lint docs bench soak fuzz clean always

help:  ## what can be done
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST)

demo: $(VENV)/.demo$(addprefix -,$(filter-out tensorflow,$(BACKEND)))  ## train on real handwritten digits, within a minute; BACKEND=jax or torch
	$(if $(BACKEND),KERAS_BACKEND=$(BACKEND)) $(BIN)/python examples/train_digits.py

test: $(VENV)/.$(if $(COVERAGE),coverage,test)  ## run the tests; ARGS are pytest's; BACKEND=jax: those of a backend alone; LATEST=1: with the newest of everything; COVERAGE=1: which lines they run
	$(if $(COVERAGE),rm -rf .coverage && mkdir .coverage)
	$(if $(BACKEND),,$(PYTEST) --ignore tests/backends $(ARGS))
	$(foreach backend,$(or $(BACKEND),$(if $(ARGS),,tensorflow jax torch)),KERAS_BACKEND=$(backend) $(PYTEST) tests/backends $(ARGS) &&) true
	$(if $(COVERAGE),$(BIN)/coverage combine --quiet && $(BIN)/coverage report)

lint: $(VENV)/.lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python --warnings

docs: $(VENV)/.docs  ## make .docs, the reference of the public names, from their docstrings
	$(BIN)/python -W error -m pdoc --docformat google --output-directory .docs shmgen shmgen.keras shmgen.torch shmgen.jax

bench: $(VENV)/.bench  ## compare with every other loader in twenty minutes; QUICK=1: in two
	$(BIN)/python -m pytest benchmarks --benchmark-only -p no:cacheprovider --timeout=0 \
		$(if $(QUICK),--quick --results=.bench,--results=benchmarks/results --into=README.md --into=benchmarks/README.md) $(ARGS)

soak: $(VENV)/.test  ## ten minutes of random faults; ARGS="--minutes 60 --seed 1"
	$(BIN)/python -m tests.soak $(ARGS)

fuzz: $(VENV)/.fuzz  ## look for MINUTES=10 for .npy files that are not read as NumPy reads them
	$(BIN)/python tests/fuzz_npy.py -max_total_time=$$((60 * $(MINUTES))) $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-latest .bench .coverage .demo .docs .fuzz .hypothesis

# One stamp for each set of packages, so that nothing is installed twice. Which build of torch pip takes is up to its configuration:
# the default one may be CUDA's, of several GB; PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS can name where the CPU's is.
$(VENV)/.%: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group $*
	@touch $@

# A peer that can't be had is left out, and the report says so.
$(VENV)/.bench: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group bench || { \
		$(INSTALL) --editable '.[$(EXTRAS)]' --group test && \
		for package in grain spdl-core; do \
			$(INSTALL) $$package || echo "left out: $$package"; \
		done; }
	@touch $@

# Python brings an older pip, which knows no dependency groups.
$(VENV)/.pip: | $(BIN)/python
	$(INSTALL) 'pip>=25.1'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
