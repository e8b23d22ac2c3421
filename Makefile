# Every target makes what it needs: a virtual environment in .venv with the project installed editable in it.
# `make gpu VENV=` installs nothing and uses the packages that $(PYTHON) has.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# Where `make gpu` leaves its reports.
OUT ?= build/gpu

ifeq ($(VENV),)
RUN := $(PYTHON)
ENVIRONMENT :=
else
BIN := $(VENV)/bin
RUN := $(BIN)/python
ENVIRONMENT := $(VENV)/.test
endif

# The CuPy extra that fits the NVIDIA driver; empty where there is none.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\)\..*/\1/p')
CUDA_EXTRA := $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13))
comma := ,

SHELL := /bin/bash

.PHONY: demo test test-fast lint gpu bench sweep report resources clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp for each set of extras; pyproject.toml is what they depend on.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[audio,plot$(addprefix $(comma),$(CUDA_EXTRA))]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test,$(or $(CUDA_EXTRA),headless)]"
	@touch $@

$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	@touch $@

demo: $(VENV)/.demo  ## up-sample a speech clip to 48 kHz and draw both spectrograms
	@mkdir -p build
	$(BIN)/cupy-convt upsample examples/audio/speech_8k.wav build/speech_48k.wav --rate 48000 --plot build/speech.png --overwrite

test: $(VENV)/.test  ## the whole suite
	$(RUN) -m pytest -n $(WORKERS)

test-fast: $(VENV)/.test  ## what fits into two minutes
	$(RUN) -m pytest -n $(WORKERS) -m "not slow"

lint: $(VENV)/.lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test  ## ratios against PyTorch and SciPy on this CPU
	$(BIN)/python -m benchmarks.run --out benchmarks/results/cpu.json

sweep: $(VENV)/.test  ## where each method begins to win, on this CPU
	$(BIN)/python -m benchmarks.sweep --out benchmarks/results/sweep-cpu.json

report: $(VENV)/.test  ## the README's tables from the committed results
	$(BIN)/python -m benchmarks.report --write

resources: $(VENV)/.test  ## registers, spills and shared bytes of every kernel variant
	$(BIN)/python -m tests.test_kernels_nvrtc

# On a machine with an NVIDIA GPU: the emulator's conformance cases on hardware, the GPU tests, the sanitizers, the
# benchmark. Each part runs whatever the one before found; the exit code is that of all.
gpu: $(ENVIRONMENT)
	@mkdir -p $(OUT)
	@failed=; \
	$(RUN) -m tests.emulator.conform --gpu 2>&1 | tee $(OUT)/conform.txt; test $${PIPESTATUS[0]} = 0 || failed="$$failed conform"; \
	$(RUN) -m pytest tests/test_gpu.py -q -W default 2>&1 | tee $(OUT)/tests.txt; test $${PIPESTATUS[0]} = 0 || failed="$$failed tests"; \
	for tool in memcheck racecheck initcheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(RUN) -m pytest tests/test_gpu.py -q -W default -k "float32 and definition" > $(OUT)/$$tool.txt 2>&1 \
	    || failed="$$failed $$tool"; tail -n 3 $(OUT)/$$tool.txt; done; \
	$(RUN) -m benchmarks.gpu --out $(OUT)/benchmark.json 2>&1 | tee $(OUT)/benchmark.txt; \
	test $${PIPESTATUS[0]} = 0 || failed="$$failed benchmark"; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build dist
