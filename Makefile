# Everything starts from a fresh clone: the first target that needs the environment makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO := $(VENV)/installed-for-demo
# The library in tagrank/ may be that of the demo.
FOR_DEMO := $(VENV)/library-for-demo
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f -name '*.[ch]*')

# The tests run in a worker process a core, 8 at most. WORKERS=0 runs them in one process.
# pytest-benchmark is left out: beside workers it measures nothing, and warns.
WORKERS ?= auto
PYTEST := $(BIN)/pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -p no:benchmark --durations=10

# The oldest versions that pyproject.toml allows. `make test-oldest TORCH=2.12.1 TRITON=3.7.1 NUMPY=numpy` takes others.
# The interpreter of Triton 3.6, which runs the kernels where there is no GPU, fails with NumPy 2.4.
TORCH := 2.10.0
TRITON := 3.6.0
NUMPY := numpy<2.4
OLDEST := build/torch-$(TORCH)

.PHONY: help demo test test-all test-oldest lint bench results docs gpu kernels-report wheel clean
.DEFAULT_GOAL := help
# Two targets at a time would install into one environment.
.NOTPARALLEL:

help:  ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# In an environment of its own needs, unless there is the whole one.
demo: $(if $(wildcard $(STAMP)),$(STAMP),$(DEMO))  ## Train on drawn scenes, compare with baselines, write runs/demo/report.html.
	$(BIN)/tagrank demo --out runs/demo

test: $(STAMP)  ## Run the tests, without the exhaustive ones; the end of the output tells what ran on which backend.
	$(PYTEST) -m "not exhaustive" $(PYTEST_ARGS)

test-all: $(STAMP)  ## Run all tests, and so every case of what `make test` tries in a few.
	$(PYTEST) $(PYTEST_ARGS)

test-oldest: $(STAMP) $(OLDEST)/installed  ## Run the tests of the layer with the oldest torch and Triton.
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -m "not exhaustive" \
		tests/nn tests/recurrence $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typecheck
	TAGRANK_BUILD_EXT=0 $(BIN)/pip install -q --no-build-isolation --no-deps --no-compile --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p tagrank

bench: $(STAMP)  ## Compare the recurrence with its peers on this machine, in a few sizes.
	$(BIN)/pytest benchmarks --benchmark-columns=median,iqr,rounds

results: $(STAMP)  ## Measure again what benchmarks/results/ says about CPUs; half an hour on an idle machine.
	$(BIN)/python -m benchmarks.recurrence --json benchmarks/results/cpu.json --plot docs/cpu.png
	$(BIN)/python -m benchmarks.recurrence --dtype bfloat16 --no-compile -B 1 64 -H 512 -T 20 --json benchmarks/results/cpu-bfloat16.json
	$(BIN)/python -m benchmarks.decoder --json benchmarks/results/decoder.json
	$(BIN)/python -m benchmarks.packed --processor-time --json benchmarks/results/packed.json
	$(BIN)/python -m benchmarks.models --processor-time --json benchmarks/results/models.json
	$(BIN)/python -m benchmarks.memory --json benchmarks/results/memory.json
	$(BIN)/python -m benchmarks.growth --json benchmarks/results/growth.json
	$(BIN)/python -m benchmarks.annotate --json benchmarks/results/annotate.json
	$(BIN)/python -m benchmarks.store --json benchmarks/results/store.json
	$(BIN)/python -m benchmarks.ray_engine --json benchmarks/results/ray_engine.json
	$(BIN)/python -m benchmarks.prepare --json benchmarks/results/prepare.json
	$(BIN)/python -m benchmarks.retrieval --json benchmarks/results/retrieval.json

docs: $(STAMP)  ## Build the site of docs/ into build/site: a minute, with the notebook, which is run; no internet access.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu:  ## On a machine with an NVIDIA GPU, with $(PYTHON) as it is (no network): tests, checker, benchmark, one file.
	# A link to this folder and nothing else, so that it may go into a distribution's Python too. nvcc builds csrc/cuda.
	PIP_BREAK_SYSTEM_PACKAGES=1 TAGRANK_BUILD_EXT=auto $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .
	# Minutes. Without nvcc the part "variants" says that it failed, and the others run.
	-$(PYTHON) -m benchmarks.cluster_variants --build
	$(PYTHON) -m benchmarks.gpu

kernels-report: $(STAMP)  ## Compile all Triton kernels for A100, H100 and B200, write docs/kernels.md; minutes, no GPU.
	rm -rf build/triton-oldest && mkdir -p build
	$(BIN)/pip install -q --no-deps --target build/triton-oldest triton==3.6.0
	for path in "" build/triton-oldest; do \
		PYTHONPATH=$$path $(BIN)/python -m tagrank.kernels.offline 8.0 9.0 && \
		PYTHONPATH=$$path $(BIN)/python -m tagrank.kernels.offline --quick 10.0 || exit 1; \
	done > build/kernels.jsonl
	$(BIN)/python -m tagrank.kernels.page build/kernels.jsonl > build/kernels.md
	mv build/kernels.md docs/kernels.md

# The wheel is built from the source distribution. auditwheel tags it with the oldest glibc that it runs with; torch's
# libraries are torch's to bring.
wheel: $(STAMP)  ## Build dist/*.tar.gz and, from it, dist/*.whl, for all torch from 2.10 on.
	rm -rf build/wheel
	$(BIN)/python -m build --no-isolation --outdir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
		--wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

clean:  ## Remove what was built, but not the environment or runs/.
	rm -rf build dist *.egg-info tagrank/_C.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: building csrc/ needs it, and pip's build isolation would hide it.
PIP := $(BIN)/pip install -q --no-compile -c constraints.txt
BASE := 'setuptools>=77' wheel torch torchvision triton numpy
# As pip would, but on all cores. Packages may have files for other versions of Python.
COMPILE := @$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(STAMP): $(SOURCES) | $(BIN)/python
	@if [ -e $(FOR_DEMO) ]; then rm -f $(DEMO) tagrank/_C.so $(FOR_DEMO); fi
	$(PIP) $(BASE)
	$(PIP) --no-build-isolation -e '.[annotate,offline,docs,dev]'
	$(COMPILE)
	@touch $@

# Without what tests, linters and the site need, and without csrc/cuda if no GPU could use it: a third of the time.
$(DEMO): $(SOURCES) | $(BIN)/python
	@touch $(FOR_DEMO)
	$(PIP) $(BASE)
	TAGRANK_BUILD_CUDA=$(if $(shell command -v nvidia-smi 2> /dev/null),auto,0) $(PIP) --no-build-isolation -e '.[annotate,offline]'
	$(COMPILE)
	@touch $@

# Without building csrc/: the library in tagrank/, built by $(STAMP) with another torch, has to serve this one too.
# The wheel for CPUs is a fifth of the other, and not on every index.
$(OLDEST)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	grep -E '^(hypothesis|pytest|pytest-timeout|pytest-xdist)==' constraints.txt > $(OLDEST)/constraints.txt
	install="$(OLDEST)/bin/pip install -q -c $(OLDEST)/constraints.txt triton==$(TRITON) $(NUMPY) hypothesis pytest \
		pytest-timeout pytest-xdist setuptools>=77 wheel"; \
	$$install torch==$(TORCH)+cpu 2> /dev/null || $$install torch==$(TORCH)
	TAGRANK_BUILD_EXT=0 $(OLDEST)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@
