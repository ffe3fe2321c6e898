# `make` lists what it can do. The first call sets up .venv; an interrupted set-up goes on where it stopped.
# TORCH_BUILD=cpu, cuda or pip overrides which build of PyTorch the set-up takes: tools/install_torch.py says how.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
TORCH ?= 2.13.0
PROFILE ?= tiny

VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
# The recipes read these from the environment, so that a value may hold spaces and quotes.
export NB PROFILE OVERRIDES OUT SEED JOBS GPU_MEMORY TORCH_BUILD TORCH_CPU_INDEX
export REAL_ENCODER REAL_SEQ2SEQ REAL_DECODER REAL_JUDGE
LESSONS := --profile="$$PROFILE" $(if $(NB),--nb="$$NB")

.DEFAULT_GOAL := help
.PHONY: help run test test-slow lab render rehearse bench bench-table real receipt newest assets lock hashes clean

help:
	@echo 'Usage: make TARGET [NAME=value ...]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' Makefile

run: $(READY) ## run the lessons headless; NB=02 PROFILE=full OVERRIDES='{"learning_rate": 0}' SEED=1 OUT=dir
	@$(RUN) tools.run_notebooks $(LESSONS) $(if $(OVERRIDES),--overrides="$$OVERRIDES") $(if $(SEED),--seed="$$SEED") \
	$(if $(OUT),--out="$$OUT") $(if $(JOBS),--jobs="$$JOBS")

test: $(READY) ## lint, then every test, the notebooks included
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(READY) ## what `make test` leaves out: kills at random steps, three seeds, the solutions in full, protections
	$(RUN) pytest -n 2 -m slow

lab: $(READY) ## open JupyterLab on notebooks/
	$(RUN) jupyterlab notebooks

render: $(READY) ## run the lessons and put stamped copies with outputs into notebooks/rendered/
	@$(RUN) tools.render $(LESSONS)

rehearse: $(READY) ## before a download: a lesson on your GPU, random weights of full size; NB=03 PROFILE=full GPU_MEMORY=15
	@$(RUN) tools.rehearse --nb="$$NB" $(if $(filter-out tiny,$(PROFILE)),--profile="$$PROFILE") \
	$(if $(GPU_MEMORY),--gpu-memory="$$GPU_MEMORY") $(if $(OVERRIDES),--overrides="$$OVERRIDES") $(if $(OUT),--keep="$$OUT")

bench: $(READY) ## on a GPU: a lesson's training against its published recipe, random weights of full size; NB=05
	@$(RUN) benchmarks.bench --nb="$$NB"

bench-table: $(READY) ## write the tables of these benchmarks in docs/ from their receipts
	@$(RUN) benchmarks.bench --table

real: $(READY) ## score small real models in the lessons, three seeds each; NB=04 REAL_DECODER=folder
	@$(RUN) pip install -q -r requirements-real.txt
	@$(RUN) benchmarks.quality real --nb="$$NB" $(if $(OVERRIDES),--overrides="$$OVERRIDES") || code=$$?; \
	if [ -z "$$NB" ]; then $(RUN) pytest -q -o addopts= tests/real || code=1; fi; exit $${code:-0}

receipt: $(READY) ## on a GPU with network: score a lesson with its real weights, for docs/real-models.md; NB=01 PROFILE=full
	@$(RUN) benchmarks.quality receipt --nb="$$NB" $(if $(filter-out tiny,$(PROFILE)),--profile="$$PROFILE") \
	$(if $(OVERRIDES),--overrides="$$OVERRIDES")

newest: $(READY) ## check the notebooks' calls against the newest releases of the Hugging Face libraries; network
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(RUN) pip install -q --no-deps --target "$$folder" accelerate bitsandbytes datasets huggingface_hub peft tokenizers \
	transformers trl; ls "$$folder" | grep dist-info; PYTHONPATH="$$folder" $(RUN) pytest -q tests/rules/test_notebooks.py -k "every_keyword or drift"

assets: $(READY) ## rebuild the data and the tiny models from their seeds
	$(VENV)/bin/python data/builders/build_datasets.py
	$(VENV)/bin/python data/builders/build_models.py

lock: ## write the newest versions that requirements.txt allows to constraints.txt; TORCH=2.13.0 picks torch
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; pip="$$folder/venv/bin/python -m pip"; set -x; \
	$(PYTHON) -m venv "$$folder/venv"; \
	echo "torch==$(TORCH)" > "$$folder/torch.txt"; \
	"$$folder/venv/bin/python" tools/install_torch.py --constraint "$$folder/torch.txt"; \
	$$pip install -r requirements.txt "torch==$(TORCH)"; \
	$$pip freeze --exclude-editable > "$$folder/all.txt"; \
	grep -vE '^(nvidia-|cuda-|triton|setuptools)' "$$folder/all.txt" | sed 's/+.*//' | LC_ALL=C sort -f > constraints.txt

hashes: $(READY) ## write the hashes of those versions to constraints-hashes.txt; minutes, several GB
	$(VENV)/bin/python .ci/lock_hashes.py

clean: ## remove outputs/ and caches; ALL=1 also .venv
	rm -rf outputs .pytest_cache .ruff_cache $(if $(ALL),$(VENV))
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# pip writes INSTALLER at the end: a package without it was interrupted, so it is taken out and installed again.
$(READY): requirements.txt $(CONSTRAINTS) pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("The course needs Python 3.11 or \
	newer, $(PYTHON) is %d.%d: call make with PYTHON=path/to/a/newer/python3." % v[:2])'
	@echo "Setting up $(VENV): one to several GB of packages, once. If interrupted, run the same command again."
	@rm -f $(READY)
	@for info in $(VENV)/lib/python3*/site-packages/*.dist-info; do [ -f "$$info/INSTALLER" ] || rm -rf "$$info"; done
	@[ -f $(VENV)/bin/activate ] && $(RUN) pip --version > /dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python tools/install_torch.py $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	$(RUN) pip install -r requirements.txt $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
	@$(VENV)/bin/python -c 'import torch, transformers, datasets, papermill'
	@touch $@
