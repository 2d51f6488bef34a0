# SPDX-License-Identifier: GPL-2.0-or-later
# make run and make test need no other step before them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
FUZZ_SECONDS ?= 600

# pip says that a disk is full in the last of many lines, and not which: it unpacks in $TMPDIR, caches in ~/.cache/pip.
define pip_install
mkdir -p $(VENV)/tmp; \
said=$$(TMPDIR="$(abspath $(VENV))/tmp" LC_ALL=C PYTHONPYCACHEPREFIX= $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  -c constraints.txt $(1) 2>&1); status=$$?; rm -rf $(VENV)/tmp; \
case "$$said" in \
*"No space left on device"*|*"Disk quota exceeded"*) \
  echo "the disk is full: pip cannot install into $(abspath $(VENV)) (make room, or set XDG_CACHE_HOME for its cache)" >&2;; \
?*) echo "$$said" >&2;; \
esac; [ $$status = 0 ]
endef

.PHONY: help run test test-kci setup lint style types tests bench bench-strangers bench-audit bench-enclaves soak fuzz kvm-unit-tests clean

help:
	@echo "make run    boot a confidential VM and show what its kernel says (sets up everything first)"
	@echo "make test   lint, types, layers and tests"
	@echo "make test-kci  the end-to-end tests once more, with kernels that VeilS-KCI has locked down (docs/kci.md)"
	@echo "make setup  only the environment in $(VENV), without the tools of tests"
	@echo "make bench  figures: with and without the monitor in pairs of boots, against QEMU, in microseconds (an hour)"
	@echo "make bench-strangers  what 256 hostile connections do to a busy guest, and to an owner who wants in"
	@echo "make bench-audit  what VeilS-LOG costs five programs of Debian's (minutes; docs/log.md)"
	@echo "make bench-enclaves  what VeilS-ENC costs programs of Debian's and each system call (minutes; docs/enclaves.md)"
	@echo "make soak   the long tests, and all others with new random examples"
	@echo "make fuzz   hostile inputs for all that reads them, FUZZ_SECONDS=$(FUZZ_SECONDS) in total"
	@echo "make kvm-unit-tests DIR=...  the x86 tests of your checkout of kvm-unit-tests as SNP guests (docs/fidelity.md)"
	@echo "make clean  remove the environment (caches: $(BIN)/veil cache clear)"

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found (Debian: apt install python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed (Debian 12 has it: apt install python3)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "no C compiler (Debian: apt install gcc libc6-dev)" >&2; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(call pip_install,-e .)
	@touch $@

# What running does not need.
$(TOOLS): $(STAMP)
	@$(call pip_install,-e '.[dev]')
	@touch $@

setup: $(STAMP)

run: $(STAMP)
	@$(BIN)/veil demo

lint: style types

style: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find src tests bench fuzz kvm_unit_tests -name '*.[ch]' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/lint-imports

types: $(TOOLS)
	$(BIN)/mypy

# Types take one core the better part of a minute if nothing is known of them yet: beside the tests.
test: style
	@$(MAKE) --no-print-directory -j2 types tests

# What Python makes of sources is kept beside them, wherever the environment says otherwise: tests start Veil many times.
# That of the packages lies there since pip has installed them.
tests: $(TOOLS)
	PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX= \
	  $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST_OPTIONS)

# VEIL_KCI is the default of --kci, and of the tests' guests that do not say themselves what they need.
test-kci: $(TOOLS)
	VEIL_KCI=on PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX= \
	  $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder tests/e2e $(PYTEST_OPTIONS)

# In parts: .venv/bin/python -m bench --help
bench: $(STAMP)
	$(BIN)/python -m bench

bench-strangers: $(STAMP)
	$(BIN)/python -m bench --strangers

$(VENV)/.bench: $(STAMP)
	@$(call pip_install,-e '.[bench]')
	@touch $@

bench-audit: $(VENV)/.bench
	$(BIN)/python -m bench.audit --plot docs/log-evaluation.png

bench-enclaves: $(VENV)/.bench
	$(BIN)/python -m bench --enclaves --plot docs/enclaves-evaluation.png

soak: $(TOOLS)
	$(BIN)/python -m pytest -q -m soak
	$(BIN)/python -m pytest -q --hypothesis-profile=search

$(VENV)/.fuzz: $(TOOLS)
	@$(call pip_install,-e '.[fuzz]')
	@touch $@

fuzz: $(VENV)/.fuzz
	@$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

kvm-unit-tests: $(STAMP)
	@[ -n "$(DIR)" ] || { echo "make kvm-unit-tests DIR=a checkout of kvm-unit-tests" >&2; exit 2; }
	@$(BIN)/python -m kvm_unit_tests --kvm-unit-tests "$(DIR)" $(TESTS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
