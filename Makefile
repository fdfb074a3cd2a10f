# The two commands people need, and those developers need. Everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q

# Tests and demos start thousands of processes, each of which would compile the whole program anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-linux test test-kvm test-psk lint guests lock clean

demo: .venv/runtime  ## the main job: launch, attest, run, migrate alive, check; ARGS= is passed on
	$(BIN)/sealift demo $(ARGS)

demo-linux: .venv/runtime  ## the same with an unmodified Linux as guest, on KVM or in an emulated machine that has it
	@$(BIN)/python -m sealift.cli.linux.fetch $(ARGS) >/dev/null
	@RIG_ATTEMPTS=3 tests/kvm/with-kvm $(BIN)/sealift demo --linux $(ARGS)

test: .venv/develop  ## all tests, several files at a time, the slow ones (cli) first, none with idle threads; ARGS= is passed on
	OPENBLAS_NUM_THREADS=1 tests/patiently 2 $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Linux's migrations have a rig each: what its emulation breaks is lost with it.
test-kvm: .venv/develop  ## the tests that need KVM, on KVM or in an emulated machine that has it
	$(BIN)/python -m sealift.cli.linux.fetch --series 6.1 --series 6.12
	RIG_ONE_THREAD=yes tests/kvm/with-kvm $(BIN)/pytest --needs-kvm -m kvm --timeout 900 \
	  tests/kvm tests/silicon --ignore tests/kvm/test_demo.py --ignore tests/kvm/test_console.py $(ARGS)
	@tests=$$($(BIN)/pytest -m kvm --collect-only -q tests/kvm/test_demo.py tests/kvm/test_console.py | \
	  grep ::) && for test in $$tests; do \
	  RIG_ATTEMPTS=4 RIG_LIMIT_S=1200 tests/kvm/with-kvm $(BIN)/pytest --needs-kvm --timeout 900 "$$test" $(ARGS) || exit; done

test-psk:  ## the tests of TLS with shared keys, under a Python that has it: 3.13 or later; PYTHON_PSK= names one
	@python=$$(tests/python-with-psk) && $$python -m venv .venv-psk
	.venv-psk/bin/pip --disable-pip-version-check -q install -c constraints.txt -e '.[dev]'
	.venv-psk/bin/pytest tests/migration/test_tls.py -k shared_keys $(ARGS)

lint: .venv/develop  ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

guests:  ## rebuild the programs that run inside guests (needs gcc)
	$(MAKE) -C src/sealift/guest/programs -f build.mk

lock: .venv/develop  ## pin what is installed now
	{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable; } > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-psk build

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: $(PYTHON) cannot make a virtual environment;" \
	  "on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/runtime: .venv/made pyproject.toml constraints.txt
	@echo "installing Sealift into .venv …"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/develop: .venv/runtime
	@echo "installing the development tools into .venv …"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
