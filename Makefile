# make search   environment, then the demo: recurrent cells on Python's own help text (minutes, no download of data)
# make test     lint, types, tests (about 10 minutes on two cores)
# make test-all the same with the long tests, and the API pages
# make docs     API pages from the docstrings, in build/api

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# The CUDA or TPU build of JAX where such a device is found, the CPU build elsewhere.
DEVICE ?= $(shell if nvidia-smi -L >/dev/null 2>&1; then echo -cuda12; elif ls /dev/accel0 /dev/vfio/0 >/dev/null 2>&1; then echo -tpu; fi)

.PHONY: search test test-all docs lint

search: $(VENV)/run
	$(RUN) -m experiments.cell_search

test: lint
	$(RUN) -m pytest -q -n 2 --dist loadfile -m "not long"

test-all: lint docs
	$(RUN) -m pytest -q -n 2 --dist loadfile

docs: $(VENV)/dev
	$(RUN) -m docs.api

lint: $(VENV)/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/run: requirements.txt requirements-cuda12.txt requirements-tpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements$(DEVICE).txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
