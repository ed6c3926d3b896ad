PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo

.PHONY: env demo test test-all lint format bench launcher gpu gpu-job clean

env: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "onnxopt needs Python 3.10 to 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments: a part of the standard library is missing." >&2; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[rtx,dev]'
	@touch $@

# The main job for a GPU that this machine need not have, its kernel run on the CPU; then for this CPU, measured.
demo: $(READY)
	@mkdir -p $(DEMO)
	$(BIN)/python -m samples dense_masked $(DEMO)/attention.onnx
	$(BIN)/onnxopt optimize $(DEMO)/attention.onnx --target sm_89 --engine rtx --output $(DEMO)/attention.sm_89.onnxopt
	$(BIN)/onnxopt verify $(DEMO)/attention.onnx $(DEMO)/attention.sm_89.onnxopt --kernels
	$(BIN)/onnxopt optimize $(DEMO)/attention.onnx --target cpu --output $(DEMO)/attention.onnxopt
	$(BIN)/onnxopt bench $(DEMO)/attention.onnxopt

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-all: $(READY)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m ''

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks.planner
	$(BIN)/python -m benchmarks.portable_cpu

# The library by which TensorRT launches the kernels of a package; TENSORRT_INCLUDE names the folder of TensorRT's headers
# where they are in none of the usual places.
launcher: $(READY)
	$(BIN)/python -m onnxopt.deploy.launcher $(TENSORRT_INCLUDE)

# Everything that waits for a GPU: kernels against float64, tile times into the tuning records, our attention beside
# PyTorch's where it is installed, and MODELS as a whole, for which HOST needs PyTorch, NumPy and cuda-bindings.
# Convolutions of CONV_MODELS are measured by our kernels, those of ALGORITHM_MODELS by each algorithm, layer by layer, and
# then as whole models, in which the choice of algorithms knows the layers' times. RESULTS receives the figures.
RESULTS ?= build/gpu-results
HOST ?= $(BIN)/python
CONV_LAYERS = $(CONV_MODELS) $(if $(ALGORITHM_MODELS),--algorithms $(ALGORITHM_MODELS))
gpu: $(READY)
	@mkdir -p $(RESULTS)
	$(BIN)/python -m pytest -q -rs tests/gpu
	$(BIN)/onnxopt profile
	$(BIN)/onnxopt profile --export $(RESULTS)/tiles.jsonl
	rm -rf build/gpu-job
	$(BIN)/python -m benchmarks.attention_gpu_job build/gpu-job $(MODELS) --target auto
	$(BIN)/python benchmarks/attention_gpu.py build/gpu-job --out $(RESULTS)/attention.jsonl
ifdef MODELS
	rm -rf build/gpu-models
	$(BIN)/python -m benchmarks.whole_model_gpu_job $(MODELS) --out build/gpu-models --target auto
	$(HOST) build/gpu-models/whole_model.py --out $(RESULTS)/whole_models.jsonl
	$(BIN)/python -m benchmarks.tensorrt_gpu $(MODELS) --out $(RESULTS)/engines.jsonl || test $$? -eq 4
endif
ifneq ($(CONV_MODELS)$(ALGORITHM_MODELS),)
	rm -rf build/gpu-conv
	$(BIN)/python -m benchmarks.conv_gpu_job $(CONV_LAYERS) --out build/gpu-conv --target auto
	$(HOST) build/gpu-conv/conv_gpu.py --out $(RESULTS)/convolutions.jsonl --seconds 36000
endif
ifdef ALGORITHM_MODELS
	$(BIN)/onnxopt profile --import $(RESULTS)/convolutions.jsonl
	rm -rf build/gpu-algorithms
	$(BIN)/python -m benchmarks.whole_model_gpu_job --algorithms $(ALGORITHM_MODELS) --out build/gpu-algorithms --target auto
	$(HOST) build/gpu-algorithms/whole_model.py --out $(RESULTS)/algorithms.jsonl
endif

# The same for a GPU in another machine (TARGET names it), which then needs NumPy and cuda-bindings only. There:
#   python build/gpu-job/tiles/run.py --out tiles.jsonl; python build/gpu-job/attention_gpu.py build/gpu-job/sites
# and, where MODELS were named and PyTorch is installed: python build/gpu-job/models/whole_model.py
# and, where CONV_MODELS or ALGORITHM_MODELS were: python build/gpu-job/conv/conv_gpu.py
# and for each of ALGORITHM_MODELS: python build/gpu-job/algorithms/MODEL/whole_model.py. Its choice knows measured times
# where `onnxopt profile --import` has read those of the layers before the job is made.
TARGET ?= sm_90
gpu-job: $(READY)
	rm -rf build/gpu-job
	$(BIN)/onnxopt profile --target $(TARGET) --job build/gpu-job/tiles
	$(BIN)/python -m benchmarks.attention_gpu_job build/gpu-job/sites $(MODELS) --target $(TARGET)
	cp benchmarks/attention_gpu.py benchmarks/attention_gpu_peers.py build/gpu-job/
ifdef MODELS
	$(BIN)/python -m benchmarks.whole_model_gpu_job $(MODELS) --out build/gpu-job/models --target $(TARGET)
endif
ifneq ($(CONV_MODELS)$(ALGORITHM_MODELS),)
	$(BIN)/python -m benchmarks.conv_gpu_job $(CONV_LAYERS) --out build/gpu-job/conv --target $(TARGET)
endif
ifdef ALGORITHM_MODELS
	for model in $(ALGORITHM_MODELS); do \
	  $(BIN)/python -m benchmarks.whole_model_gpu_job --algorithms $$model --target $(TARGET) \
	    --out build/gpu-job/algorithms/$$(basename $$model .onnx) || exit 1; done
endif

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
