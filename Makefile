# Every task of this project is a target here. The first target that needs .venv makes it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python that TensorFlow has wheels for; else a newer Python, with JAX as the backend.
is_python = $$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(1)))' 2>/dev/null
find_python = for p in python3 python3.13 python3.12 python3.11; do $(call is_python,13) && echo $$p && exit; done; \
	for p in python3 python3.14; do $(call is_python,99) && echo $$p && exit; done
PYTHON ?= $(or $(shell $(find_python)),$(error no Python 3.11 or newer with ensurepip was found; name one: make PYTHON=...))
VENV ?= $(if $(LATEST),.venv-latest,.venv)
BIN := $(VENV)/bin
HAS_TENSORFLOW := $(shell p=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); $(call is_python,13) && echo yes)
# LATEST installs the newest versions, and upgrades packages that are already installed.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint .ci/constraints.txt)
# The workers of pytest and of shmgen, and processes that tests start, each write a coverage file. pytest combines the files that
# exist when it ends, so that `coverage combine` may find no more.
COVER := --cov --cov-report=
EXTRAS := $(if $(HAS_TENSORFLOW),tensorflow,jax),cli,hdf5,plot,remote
PYTEST = $(BIN)/python -m pytest -p no:benchmark -n 2 --dist worksteal $(if $(COVERAGE),$(COVER) --cov-append)
MINUTES ?= 10
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Containers often set this; each worker that the tests start would then compile the whole package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help odd demo test nightly lint docs bench soak fuzz clean always

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST)

DEMO := $(or $(BACKEND),$(if $(HAS_TENSORFLOW),tensorflow,jax))
demo: $(VENV)/.demo$(addprefix -,$(filter-out tensorflow,$(DEMO)))  ## train on real handwritten digits; BACKEND=jax or torch
	$(if $(HAS_TENSORFLOW)$(BACKEND),,@echo "TensorFlow has no wheels for $$($(BIN)/python --version): the backend is $(DEMO)")
	KERAS_BACKEND=$(DEMO) $(BIN)/python examples/train_digits.py

# A run that fails does not stop the next ones. BACKEND=torch installs torch, and runs the tests that need it.
RUNS := $(if $(BACKEND),$(filter torch,$(BACKEND)) $(BACKEND)-backend,suite $(if $(ARGS),,$(if $(HAS_TENSORFLOW),tensorflow-backend) jax-backend))
# Tests that import Keras into their own process take a second or more to start, so they run with a backend's tests.
# The suite has 3 processes for 2 processors, since its tests spend a third of their time waiting; a backend's tests compute.
FAST := $(if $(SLOW),,-m 'not slow')
# ARGS that name files of tests take the place of the folders.
unless_named = $(if $(findstring tests/,$(ARGS)),,$(1))
run_suite = $(PYTEST) -n 3 $(call unless_named,tests --ignore tests/backends $(if $(ARGS),,--ignore tests/with_keras)) $(FAST)
run_torch = $(PYTEST) $(call unless_named,tests --ignore tests/backends) -m torch
run_tensorflow-backend = KERAS_BACKEND=tensorflow $(PYTEST) $(call unless_named,tests/backends tests/with_keras) $(FAST)
run_jax-backend = KERAS_BACKEND=jax $(PYTEST) $(call unless_named,tests/backends $(if $(HAS_TENSORFLOW),,tests/with_keras)) $(FAST)
run_torch-backend = KERAS_BACKEND=torch $(PYTEST) $(call unless_named,tests/backends)
test: $(VENV)/.$(if $(COVERAGE),coverage,test)$(addprefix -,$(filter torch,$(BACKEND)))  ## run the tests; SLOW=1: slow tests, too; ARGS: arguments of pytest; BACKEND=torch: tests that need torch; LATEST=1: with the newest packages; COVERAGE=1: report the lines that ran
	$(if $(COVERAGE),rm -rf .coverage && mkdir .coverage)
	@failed=; \
	$(foreach run,$(RUNS),echo '$(run_$(run)) $(ARGS)'; $(run_$(run)) $(ARGS) || failed="$$failed $(run)";) \
	$(if $(COVERAGE),$(BIN)/coverage combine --append --quiet; $(BIN)/coverage report;) \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }
odd: $(VENV)/.test  ## soak for a minute each without memfd_create in Python, and in a sandbox that forbids it
	$(foreach place,old forbidden,$(BIN)/python tests/odd_places.py $(place) $(BIN)/python -m tests.soak --minutes 1 $(ARGS) &&) true

lint: $(VENV)/.lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python --warnings

docs: $(VENV)/.docs  ## build the site in .docs: guide, recipes, reference
	$(BIN)/zensical build --config-file .mkdocs.yml --clean --strict

bench: $(VENV)/.bench  ## compare with other loaders, in half an hour; QUICK=1: in two minutes
	$(BIN)/python -m pytest benchmarks --benchmark-only -p no:cacheprovider --timeout=0 \
		$(if $(QUICK),--quick --results=.bench,--results=benchmarks/results --into=README.md --into=benchmarks/README.md) $(ARGS)

soak: $(VENV)/.test  ## run ten minutes of random faults; ARGS="--minutes 60 --seed 1"
	$(BIN)/python -m tests.soak $(ARGS)

nightly: .venv-nightly/.nightly  ## run the tests of the JAX backend with the newest pre-release of Keras
	KERAS_BACKEND=jax .venv-nightly/bin/python -m pytest -p no:benchmark -n 2 --dist worksteal tests/backends $(ARGS)

fuzz: $(VENV)/.fuzz  ## search for MINUTES=10 for .npy files that shmgen and NumPy read differently
	$(BIN)/python tests/fuzz_npy.py -max_total_time=$$((60 * $(MINUTES))) $(ARGS)

clean:  ## remove all files that the other targets made
	rm -rf $(VENV) .venv-latest .venv-nightly .bench .benchmarks .coverage .demo .docs .fuzz .hypothesis .cache .*_cache

# One stamp for each group of packages, so that nothing is installed twice. The configuration of pip selects the build of torch: the
# default may be that for CUDA, of several GB; PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS can name an index with the CPU build.
$(VENV)/.%: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group $*
	@touch $@

# keras-nightly installs the same modules as keras, so keras is uninstalled first.
.venv-nightly/.nightly: pyproject.toml .ci/constraints.txt
	$(MAKE) VENV=.venv-nightly HAS_TENSORFLOW= .venv-nightly/.test
	.venv-nightly/bin/python -m pip uninstall --quiet --yes keras
	.venv-nightly/bin/python -m pip install --quiet --disable-pip-version-check --pre --upgrade keras-nightly
	@touch $@

# A peer that can't be installed is left out, and the report says so.
$(VENV)/.bench: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group bench || { \
		$(INSTALL) --editable '.[$(EXTRAS)]' --group test-torch && \
		for package in grain spdl-core; do \
			$(INSTALL) $$package || echo "left out: $$package"; \
		done; }
	@touch $@

# The pip that comes with Python may be too old for dependency groups.
$(VENV)/.pip: | $(BIN)/python
	$(INSTALL) 'pip>=25.1'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
