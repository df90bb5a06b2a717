# Everything that a fresh Debian or Ubuntu needs is one of these away:
#
#   make demo     install into .venv, train a small network, compile it for two devices
#   make test     install into .venv, run what counts of the tests, in some minutes
#   make test-all install into .venv, run all tests: make test, then make test-slow
#   make check    install into .venv, lint, type-check, check who imports whom
#   make kernels  build the library of sparse kernels into hwprune/kernels (CMake, a C++17 compiler)
#   make sanitize build and test the kernels with address and undefined-behaviour sanitizers; fuzz
#   make tsan     build and test the kernels with the thread sanitizer
#   make fuzz-native  fuzz the kernels and the firmware's decoders with libFuzzer (Clang), a minute each
#   make faults   kill hwprune at some of the changes it makes to the disk (FAULTS_ARGS=: at all)
#   make fuzz     fuzz what reads other people's files, with atheris in .venv-fuzz
#   make aarch64  build the kernels for 64-bit Arm, test them under qemu-user
#   make runtimes install onnxruntime 1.11.1, 1.15.1 and 1.17.3 apart, for the tests that run files
#                 in them (1.11.1 where there is a Python 3.10 or 3.9 for it)
#   make versions  the oldest and the newest releases of what hwprune needs, under Python 3.10 and 3.13
#   make hashes   write constraints-hashes.txt anew, and with it docs/licences.md (make licences)
#   make sbom     write what is in an install as a CycloneDX document, build/sbom.json
#   make audit    ask pip-audit for known defects of what is pinned
#   make integrations  install Lightning, transformers and ultralytics into .venv-integrations, run
#                 the tests that train in them
#   make docs     build the site of docs/ into build/site, with every link checked
#   make notebooks  run the notebooks of examples/; both install into .venv-docs
#   make wheel    build wheels with the kernels inside into dist/, for x86-64 and for 64-bit Arm
#   make clean    remove what these made, .venv included
#
# PYTHON chooses the interpreter (3.10 to 3.13): make demo PYTHON=python3.12
# Package indexes, proxies and caches are pip's business: configure pip, not this file.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.hwprune-installed
# Before commands that only root may run; nothing where that is us already.
ROOT   := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-all check kernels sanitize tsan \
  faults fuzz fuzz-native aarch64 runtimes versions hashes licences sbom audit \
  integrations docs notebooks wheel clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP) kernels

demo: $(STAMP) kernels
	$(BIN)/python examples/demo.py

# All processors work on the tests, one thread each: more would only get into each other's way.
PYTEST := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

test: $(STAMP) kernels
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# Whole runs that are killed, resumed, distributed, packaged, or of large networks.
test-slow: $(STAMP) kernels
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-all: test test-slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest -q -rP tests/test_import_arrows.py

# The editable install makes the checkout itself importable, and puts `hwprune` into .venv/bin.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "hwprune needs Python 3.10 to 3.13, and $(PYTHON) is not one of them (or is absent)."; \
	  echo "Name another one: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is not complete. On Debian and Ubuntu:"; \
	  echo "    sudo apt-get install python3-venv"; exit 1; }; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): minutes the first time, most of them for torch."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation \
	  --editable '.[compile,timm,dev]'
	@touch $@

# CMake knows what has changed. Without it, or without a compiler, everything works, at dense speed.
kernels:
	@if ! command -v cmake >/dev/null || ! command -v $(firstword $(CXX)) >/dev/null; then \
	  echo "No kernels: CMake or a C++ compiler is absent (apt-get install cmake g++)."; \
	else \
	  mkdir -p build && \
	  { cmake -B build/kernels -S . -DHWPRUNE_IN_PLACE=ON && cmake --build build/kernels --parallel; } \
	    >build/kernels.log 2>&1 || { cat build/kernels.log; exit 1; }; \
	fi

sanitize:
	cmake -B build/sanitize -S . -DCMAKE_BUILD_TYPE=Sanitize \
	  -DHWPRUNE_SANITIZE=ON -DHWPRUNE_TESTS=ON -DHWPRUNE_FUZZ=ON
	cmake --build build/sanitize --parallel
	cd build/sanitize && ctest --output-on-failure --parallel 2

# onnxruntime itself is built without it: the kernels' own program runs them from eight threads.
tsan:
	cmake -B build/tsan -S . -DCMAKE_BUILD_TYPE=Sanitize -DHWPRUNE_SANITIZE=ON -DHWPRUNE_SANITIZERS=thread \
	  -DHWPRUNE_TESTS=ON
	cmake --build build/tsan --parallel --target test_compute
	build/tsan/tests/kernels/test_compute 40

# FUZZ_SECONDS=3600: an hour each. What is found is kept in build/fuzz; inputs that led further, in build/corpus.
CLANG := $(firstword $(foreach each,clang clang-19 clang-16 clang-14,$(shell command -v $(each))))
FUZZ_SECONDS ?= 60
fuzz-native:
	@if test -z "$(CLANG)"; then echo "SKIPPED: there is no Clang here (apt-get install clang)."; else \
	  cmake -B build/fuzz-native -S . -DCMAKE_BUILD_TYPE=Sanitize -DHWPRUNE_SANITIZE=ON -DHWPRUNE_FUZZ=ON \
	    -DCMAKE_C_COMPILER=$(CLANG) -DCMAKE_CXX_COMPILER=$(subst clang,clang++,$(CLANG)) && \
	  cmake --build build/fuzz-native --parallel --target fuzz_decode fuzz_run fuzz_firmware && mkdir -p build/fuzz && \
	  for each in fuzz_decode fuzz_run fuzz_firmware; do mkdir -p build/corpus/$$each && \
	    build/fuzz-native/tests/kernels/$$each -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -malloc_limit_mb=128 \
	      -verbosity=0 -print_final_stats=1 -artifact_prefix=build/fuzz/$$each- \
	      build/corpus/$$each tests/corpus/$$each || exit 1; done; fi

FAULTS_ARGS ?= --points 3 --mode kill
faults: $(STAMP) kernels
	$(BIN)/python tests/faults/crash_points.py $(FAULTS_ARGS)

# Coverage-guided; the rest of its Python is that of .venv.
FUZZERS := .venv-fuzz
FUZZ_ARGS ?= --seconds 5
fuzz: $(STAMP) kernels
	@test -e $(FUZZERS)/installed || { $(BIN)/python -m venv $(FUZZERS) && \
	  shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(FUZZERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$shared')" >"$$own/shared.pth" && \
	  $(FUZZERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps atheris && \
	  touch $(FUZZERS)/installed; } || rm -rf $(FUZZERS)
	@if test -e $(FUZZERS)/installed; then $(FUZZERS)/bin/python tests/fuzz/fuzz_readers.py $(FUZZ_ARGS); \
	else echo "SKIPPED: atheris cannot be installed here."; fi

aarch64:
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	  { $(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq --no-install-recommends \
	    g++-aarch64-linux-gnu qemu-user; } >/dev/null 2>&1 || true
	@if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then \
	  echo "SKIPPED: the kernels were not built for aarch64: no g++-aarch64-linux-gnu and qemu-user here."; \
	else \
	  cmake -B build/aarch64 -S . -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DHWPRUNE_TESTS=ON -DHWPRUNE_FUZZ=ON \
	    '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu' && \
	  cmake --build build/aarch64 --parallel && cd build/aarch64 && ctest --output-on-failure --parallel 2; \
	fi

# The last versions before and after functions were folded and the kernels' ABI began. Their wheels
# need NumPy 1; Python 3.12 and newer have none of the first.
runtimes:
	@for version in 1.11.1 1.15.1 1.17.3; do \
	  python=$(PYTHON); test $$version != 1.11.1 || \
	    python=$$(command -v python3.10 || command -v python3.9 || echo $(PYTHON)); \
	  folder=build/runtimes/$$version; test -e $$folder/installed || \
	  { rm -rf $$folder && $$python -m venv $$folder && \
	    $$folder/bin/python -m pip install --quiet --disable-pip-version-check \
	      onnxruntime==$$version 'numpy<2' && touch $$folder/installed; } || \
	  { rm -rf $$folder; echo "SKIPPED: onnxruntime $$version cannot be installed here."; }; \
	done

versions:
	PYTHON=$(PYTHON) .ci/versions

# Tools that hwprune itself does not need.
CHAIN := build/chain
$(CHAIN)/installed:
	$(PYTHON) -m venv $(CHAIN)
	$(CHAIN)/bin/python -m pip install --quiet --disable-pip-version-check uv cyclonedx-bom pip-audit
	@touch $@

hashes: $(CHAIN)/installed
	{ sed -n '/^#/p;/^[^#]/q' constraints-hashes.txt; \
	  $(CHAIN)/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate \
	    --constraint constraints.txt --extra compile --extra timm --extra dev pyproject.toml; } >build/hashes
	mv build/hashes constraints-hashes.txt

licences: $(STAMP)
	$(BIN)/python .ci/licences.py $(wildcard build/versions/*/lib/*/site-packages)

sbom: $(CHAIN)/installed
	$(CHAIN)/bin/cyclonedx-py requirements constraints-hashes.txt --pyproject pyproject.toml \
	  --output-reproducible --validate --output-file build/sbom.json

# The service is apart from the index, and there are networks that reach the one and not the other:
# there it finds nothing, numpy neither. A package alone that it does not know is no reason to skip.
audit: $(CHAIN)/installed
	@$(CHAIN)/bin/pip-audit --requirement constraints-hashes.txt --require-hashes --disable-pip \
	  >build/audit 2>&1; code=$$?; \
	if ! grep -v '^WARNING' build/audit | grep -q . || grep -Eq '^numpy .*could not be audited|ConnectionError' build/audit; then \
	  echo "SKIPPED: the service of known defects is not reached from here."; \
	else cat build/audit; exit $$code; fi

# Other people's trainers, beside the pinned torch: all that they share with us is that of .venv.
TRAINERS := .venv-integrations
integrations: $(STAMP) kernels
	@$(call beside,$(TRAINERS),requirements-integrations.txt)
	@if test -e $(TRAINERS)/installed; then \
	  env OMP_NUM_THREADS=1 $(TRAINERS)/bin/python -m pytest -n logical --dist loadfile \
	    tests/integrations $(PYTEST_ARGS); \
	else echo "SKIPPED: Lightning, transformers and ultralytics cannot be installed here."; fi

# $(1): an environment that shares .venv's packages; $(2): what else is in it, without dependencies.
beside = cmp -s $(2) $(1)/installed || \
	{ rm -rf $(1) && $(BIN)/python -m venv $(1) && \
	  shared=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  own=$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$shared')" >"$$own/shared.pth" && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    --requirement $(2) && cp $(2) $(1)/installed; } || rm -rf $(1)

SITE := .venv-docs
docs: $(STAMP)
	@$(call beside,$(SITE),requirements-docs.txt)
	@if test -e $(SITE)/installed; then NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet; \
	else echo "SKIPPED: mkdocs-material cannot be installed here."; fi

notebooks: $(STAMP) kernels
	@$(call beside,$(SITE),requirements-docs.txt)
	@if test -e $(SITE)/installed; then \
	  env OMP_NUM_THREADS=1 $(SITE)/bin/python -m pytest tests/docs/test_notebooks.py $(PYTEST_ARGS); \
	else echo "SKIPPED: Jupyter cannot be installed here."; fi

wheel:
	PYTHON=$(PYTHON) .ci/wheels

clean:
	rm -f hwprune/kernels/libhwprune_kernels.so
	rm -rf $(VENV) $(TRAINERS) $(FUZZERS) $(SITE) demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
