# `make demo`: raw text to a Hugging Face model on this machine.   `make test`: every test.
# Variables: PYTHON (the interpreter that makes the environment), VENV (where it goes), JOBS (test processes),
# TORCH_ARGS (extra pip arguments for torch alone, e.g. an --index-url with CPU builds), DEMO_ARGS, PYTEST_ARGS.

PYTHON ?= python3.11
VENV ?= .venv
JOBS ?= 2
TORCH_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
CODE := pretrain_gpt.py setup.py megatron_ext checkpoint_convert tools examples benchmarks tests
TYPED := megatron_ext checkpoint_convert tools
FAST := -m "not dist and not e2e and not gpu"
SLOW := -m "(dist or e2e) and not gpu"
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-unit test-slow test-all test-gpu check format bench doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## the environment, the pinned packages, this project (editable, with its C++ part)

install-dev: $(VENV)/.installed-dev  ## the same, and what the tests need

demo: install  ## corpus, tokenizer, training in two layouts, export, generation; results in demo/
	$(PY) tools/demo.py $(DEMO_ARGS)

# In two runs: the tests that start processes come one after another, because two launches at a time starve each other.
test: test-unit test-slow  ## all tests

test-unit: install-dev  ## the tests that start no gloo processes
	$(PY) -m pytest -n $(JOBS) $(FAST) tests $(PYTEST_ARGS)

test-slow: install-dev  ## the tests that start processes and drive whole commands
	$(PY) -m pytest $(SLOW) tests $(PYTEST_ARGS)

test-all: test  ## and every legal layout of up to 8 processes: some two hours on 2 cores
	$(PY) -m pytest -m whole tests -v $(PYTEST_ARGS)

test-gpu: install-dev  ## what needs GPUs; with several of them, layouts over NCCL too
	$(PY) -m pytest -m gpu tests -v $(PYTEST_ARGS)

check: install-dev  ## format, lint, types, unit tests
	$(PY) -m ruff format --check $(wildcard $(CODE))
	$(PY) -m ruff check $(wildcard $(CODE))
	$(PY) -m mypy $(wildcard $(TYPED))
	$(PY) -m pytest -n $(JOBS) $(FAST) tests $(PYTEST_ARGS)

format: install-dev  ## put the sources into the one format
	$(PY) -m ruff format $(wildcard $(CODE))
	$(PY) -m ruff check --fix $(wildcard $(CODE))

bench: install-dev  ## side-by-side measurements, one JSON line each
	@for file in $(filter-out %/__init__.py,$(wildcard benchmarks/*.py)); do $(PY) $$file || exit 1; done

doctor: install  ## what this machine has, and what to do about it
	$(PY) tools/doctor.py

clean:  ## remove what was built and the demo's results; keeps the environment
	rm -rf build demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis megatron_ext/_native*.so
	rm -f $(VENV)/.installed $(VENV)/.installed-dev
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch alone and first, so that its index can be chosen; then the pins; then this project without build isolation,
# because the build needs the pybind11 and setuptools of this environment and nothing from the network.
$(VENV)/.packages: requirements/cpu.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH_ARGS) "$$(grep '^torch==' requirements/cpu.txt)"
	$(PIP) install --quiet -r requirements/cpu.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.packages setup.py $(wildcard csrc/*)
	$(PIP) install --quiet --no-build-isolation --no-deps -e .
	@$(PY) -c "import megatron_ext._native" 2>/dev/null || echo "note: no C++ extension; the NumPy twins are used (try: $(PIP) install -v --no-build-isolation --no-deps -e .)"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt requirements/ray.txt
	$(PIP) install --quiet -r requirements/dev.txt
	@touch $@
