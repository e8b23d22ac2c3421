# Every target makes what it needs: a virtual environment in .venv with the project installed editable in it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2

# The CuPy extra that fits the NVIDIA driver; empty where there is none.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\)\..*/\1/p')
CUDA_EXTRA := $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13))
comma := ,
with_cuda = $(1)$(if $(CUDA_EXTRA),$(comma)$(CUDA_EXTRA))

.PHONY: demo test test-fast lint gpu bench report resources clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp for each set of extras; pyproject.toml is what they depend on.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$(call with_cuda,audio$(comma)plot)]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$(call with_cuda,test$(comma)nvrtc)]"
	@touch $@

$(VENV)/.lint: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	@touch $@

demo: $(VENV)/.demo  ## up-sample a speech clip to 48 kHz and draw both spectrograms
	@mkdir -p build
	$(BIN)/cupy-convt upsample examples/audio/speech_8k.wav build/speech_48k.wav --rate 48000 --plot build/speech.png --overwrite

test: $(VENV)/.test  ## the whole suite
	$(PYTEST) -n $(WORKERS)

test-fast: $(VENV)/.test  ## what fits into two minutes
	$(PYTEST) -n $(WORKERS) -m "not slow"

lint: $(VENV)/.lint  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test  ## ratios against PyTorch and SciPy on this CPU
	$(BIN)/python -m benchmarks.run --out benchmarks/results/cpu.json

report: $(VENV)/.test  ## the README's tables from the committed results
	$(BIN)/python -m benchmarks.report --write

resources: $(VENV)/.test  ## registers, spills and shared bytes of every kernel variant
	$(BIN)/python -m tests.test_kernels_nvrtc

gpu: $(VENV)/.test  ## on a machine with an NVIDIA GPU: conformance, tests, sanitizers, benchmark
	PYTHON=$(BIN)/python ./gpu.sh

clean:
	rm -rf $(VENV) build dist
