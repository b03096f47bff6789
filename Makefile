# One way to do each thing; people and CI call the same. Everything runs in .venv, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two cores are busy with three: many tests wait for a clock, a signal or another process.
JOBS ?= 3
ARGS ?=
CODE := airflow_provider_sft trainer dags tests tools

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage faults check format bench image image-pins gpu-test image-test cluster-test vllm vllm-table schema pin clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(STAMP) ## make .venv with the tested versions, once
# A second call finds the stamp and does nothing, until pyproject.toml or constraints.txt change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
# Airflow's providers take 17 s to import without bytecode, and its limit for a DAG file is 30 s.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

demo: install ## tune a real small model from an Airflow DAG on this machine
	$(BIN)/python -m tools.demo $(ARGS)

test: install ## the test suite; ARGS="-k lora" to choose
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

coverage: install ## the test suite, and which lines it ran; a quarter slower
	$(MAKE) test ARGS="--cov --cov-report=term:skip-covered $(ARGS)"

faults: install ## kill and break runs at random points for minutes and compare what is left; SFT_FAULTS_SEED repeats
	$(BIN)/python -m pytest -s -v -n 0 -m faults tests/faults $(ARGS)

check: install ## lint, format, types, sizes
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/python tools/sizes.py airflow_provider_sft trainer dags tools

format: install ## apply what check asks for, where it can be applied
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: install ## every tests/bench/bench_*.py
	$(BIN)/python -m tools.bench $(ARGS)

gpu-test: install ## the trainer on this machine's GPU: its kernels, quantised bases, memory, a resume
	$(BIN)/python -m pytest -v -m gpu tests/gpu $(ARGS)

image: ## build the trainer image
	images/build.sh $(ARGS)

image-test: install ## run the image as the pod runs it
	$(BIN)/python -m pytest -s -m image tests/image $(ARGS)

cluster-test: install ## the main rows on the cluster of KUBECONFIG, with SFT_TEST_IMAGE
	@test -n "$$KUBECONFIG" || { echo "KUBECONFIG is not set. Give the path of a kubeconfig file."; exit 2; }
	$(BIN)/python -m pytest -v -m cluster tests/cluster $(ARGS)

image-pins: install ## write images/requirements-*.txt anew from constraints.txt (needs uv)
	$(BIN)/python -m tools.image_pins

vllm: install ## our verdict on adapters against released vLLM, whose wheels it fetches (2 GB)
	$(BIN)/python -m tools.vllm $(ARGS)

vllm-table: install ## what each vLLM release takes, read from its wheel: ARGS="0.34.0 --out FILE"
	$(BIN)/python -m tools.vllm_table $(ARGS)

schema: install ## write config_schema.json and docs/config.md anew from the trainer's dataclasses
	$(BIN)/python -m trainer.schema

pin: install ## write constraints.txt anew from .venv
	$(BIN)/python tools/constraints.py > constraints.new && mv constraints.new constraints.txt && touch $(STAMP)

clean: ## remove everything that these targets made
	rm -rf $(VENV) .demo build dist htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
