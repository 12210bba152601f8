# The only door: everything that can be done here is a target. The first one that needs it makes .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python for which TensorFlow has wheels; else a newer one, on which the backend is JAX.
is_python = $$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $(1)))' 2>/dev/null
find_python = for p in python3 python3.13 python3.12 python3.11; do $(call is_python,13) && echo $$p && exit; done; \
	for p in python3 python3.14; do $(call is_python,99) && echo $$p && exit; done
PYTHON ?= $(or $(shell $(find_python)),$(error no Python 3.11 or newer with ensurepip was found; name one: make PYTHON=...))
VENV ?= $(if $(LATEST),.venv-latest,.venv)
BIN := $(VENV)/bin
HAS_TENSORFLOW := $(shell p=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); $(call is_python,13) && echo yes)
# With LATEST, the newest of everything that can be had; what was the newest when it was last installed need not be any more.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint .ci/constraints.txt)
# A worker of pytest's, a process that a test starts, and a worker of shmgen's each write a file of their own. pytest puts those
# together that are there when it ends; there may be no others.
COVER := --cov --cov-report=
EXTRAS := $(if $(HAS_TENSORFLOW),tensorflow,jax),cli,hdf5,plot,remote
PYTEST = $(BIN)/python -m pytest -p no:benchmark -n 2 --dist worksteal $(if $(COVERAGE),$(COVER) --cov-append)
MINUTES ?= 10
export TF_CPP_MIN_LOG_LEVEL ?= 2
# Some set this in containers; each of the workers that the tests start would then compile the whole package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help odd demo test nightly lint docs bench soak fuzz clean always

help:  ## what can be done
	@sed -n 's/^\([a-z]*\):.*##/\1:/p' $(MAKEFILE_LIST)

DEMO := $(or $(BACKEND),$(if $(HAS_TENSORFLOW),tensorflow,jax))
demo: $(VENV)/.demo$(addprefix -,$(filter-out tensorflow,$(DEMO)))  ## train on real handwritten digits; BACKEND=jax or torch
	$(if $(HAS_TENSORFLOW)$(BACKEND),,@echo "TensorFlow has no wheels for $$($(BIN)/python --version): the backend is $(DEMO)")
	KERAS_BACKEND=$(DEMO) $(BIN)/python examples/train_digits.py

# Each run goes on to the next when it fails. Tests that need torch run with BACKEND=torch, which installs it.
RUNS := $(if $(BACKEND),$(filter torch,$(BACKEND)) $(BACKEND)-backend,suite $(if $(ARGS),,$(if $(HAS_TENSORFLOW),tensorflow-backend) jax-backend))
# What imports Keras into the process of the tests takes a second or more to begin, so it is apart, and run with a backend's tests.
# The cases of the suite wait for a third of their time, those of a backend compute.
FAST := $(if $(SLOW),,-m 'not slow')
run_suite = $(PYTEST) -n 3 tests --ignore tests/backends $(if $(ARGS),,--ignore tests/with_keras) $(FAST)
run_torch = $(PYTEST) tests --ignore tests/backends -m torch
run_tensorflow-backend = KERAS_BACKEND=tensorflow $(PYTEST) tests/backends tests/with_keras $(FAST)
run_jax-backend = KERAS_BACKEND=jax $(PYTEST) tests/backends $(if $(HAS_TENSORFLOW),,tests/with_keras) $(FAST)
run_torch-backend = KERAS_BACKEND=torch $(PYTEST) tests/backends
test: $(VENV)/.$(if $(COVERAGE),coverage,test)$(addprefix -,$(filter torch,$(BACKEND)))  ## run the tests; SLOW=1: those too that train for long; ARGS are pytest's; BACKEND=torch: those that need torch; LATEST=1: with the newest of everything; COVERAGE=1: which lines they run
	$(if $(COVERAGE),rm -rf .coverage && mkdir .coverage)
	@failed=; \
	$(foreach run,$(RUNS),echo '$(run_$(run)) $(ARGS)'; $(run_$(run)) $(ARGS) || failed="$$failed $(run)";) \
	$(if $(COVERAGE),$(BIN)/coverage combine --append --quiet; $(BIN)/coverage report;) \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }
odd: $(VENV)/.test  ## a soak of a minute each where Python has no memfd_create, and where a sandbox forbids it
	$(foreach place,old forbidden,$(BIN)/python tests/odd_places.py $(place) $(BIN)/python -m tests.soak --minutes 1 $(ARGS) &&) true

lint: $(VENV)/.lint  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python --warnings

docs: $(VENV)/.docs  ## build the site in .docs: guide, recipes, reference
	$(BIN)/zensical build --config-file .mkdocs.yml --clean --strict

bench: $(VENV)/.bench  ## compare with every other loader in half an hour; QUICK=1: in two
	$(BIN)/python -m pytest benchmarks --benchmark-only -p no:cacheprovider --timeout=0 \
		$(if $(QUICK),--quick --results=.bench,--results=benchmarks/results --into=README.md --into=benchmarks/README.md) $(ARGS)

soak: $(VENV)/.test  ## ten minutes of random faults; ARGS="--minutes 60 --seed 1"
	$(BIN)/python -m tests.soak $(ARGS)

nightly: .venv-nightly/.nightly  ## run the tests of the JAX backend with the newest pre-release of Keras
	KERAS_BACKEND=jax .venv-nightly/bin/python -m pytest -p no:benchmark -n 2 --dist worksteal tests/backends $(ARGS)

fuzz: $(VENV)/.fuzz  ## look for MINUTES=10 for .npy files that are not read as NumPy reads them
	$(BIN)/python tests/fuzz_npy.py -max_total_time=$$((60 * $(MINUTES))) $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-latest .venv-nightly .bench .coverage .demo .docs .fuzz .hypothesis

# One stamp for each set of packages, so that nothing is installed twice. Which build of torch pip takes is up to its configuration:
# the default one may be CUDA's, of several GB; PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS can name where the CPU's is.
$(VENV)/.%: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group $*
	@touch $@

# keras-nightly is the package keras by another name: the one must go before the other comes.
.venv-nightly/.nightly: pyproject.toml .ci/constraints.txt
	$(MAKE) VENV=.venv-nightly HAS_TENSORFLOW= .venv-nightly/.test
	.venv-nightly/bin/python -m pip uninstall --quiet --yes keras
	.venv-nightly/bin/python -m pip install --quiet --disable-pip-version-check --pre --upgrade keras-nightly
	@touch $@

# A peer that can't be had is left out, and the report says so.
$(VENV)/.bench: pyproject.toml .ci/constraints.txt $(if $(LATEST),always) | $(VENV)/.pip
	$(INSTALL) --editable '.[$(EXTRAS)]' --group bench || { \
		$(INSTALL) --editable '.[$(EXTRAS)]' --group test-torch && \
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
