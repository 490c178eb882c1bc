# `make book` and `make test` are the two commands; `make help` lists the others.
# They need make and Python 3.10 to 3.13 and nothing else: tools/environment.py makes .venv, once.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
N ?= 01
BENCH ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHAPTERS = $(BIN)/python tools/chapters.py
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

# One thread is the unit of the book's numbers and times; more make the steps slower on a busy machine.
export OMP_NUM_THREADS = 1
# The committed outputs are those of `quick`, whatever the reader's own setting is.
export NASBOOK_SCALE = quick
export PYTHONHASHSEED = 0
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: help book html test chapter environment bench lint check-site vendor clean
.DEFAULT_GOAL := help

help:
	@echo 'make book          run every chapter (scale quick) and build the book'
	@echo 'make test          unit tests, the guards of the book, every notebook against its outputs'
	@echo 'make html          build the book from the outputs in notebooks/ (seconds)'
	@echo 'make chapter N=01  run one chapter: book/chapters/01-*.md -> notebooks/01-*.ipynb'
	@echo 'make lint          ruff on package, tests and notebooks; mypy on the package'
	@echo 'make bench         the measured comparisons in benchmarks/; BENCH="--device cuda --record" for a GPU'
	@echo 'make check-site    the built pages in headless Chromium: requests, errors, screenshots'
	@echo 'make clean         remove what was built (not .venv)'
	@echo
	@echo 'Another Python: make PYTHON=python3.12 book'

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) tools/environment.py $(VENV)
	@touch $@

book: $(STAMP)
	$(CHAPTERS) run
	@$(MAKE) --no-print-directory html

chapter: $(STAMP)
	$(CHAPTERS) run $(N)

# Clean each time: an incremental build hides earlier warnings and keeps old files of _static.
html: $(STAMP)
	rm -rf _build/html _build/.doctrees _build/jupyter_execute
	$(BIN)/jupyter-book build . -n -W --keep-going --quiet
	@echo
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html"

# PYTHONPATH: tools/offline refuses every connection to another machine, in tests and in notebook kernels alike.
test: $(STAMP)
	PYTHONPATH=$(CURDIR)/tools/offline $(BIN)/python -m pytest -n $(JOBS) --dist loadfile \
		--nbval --nbval-cell-timeout 300 --nbval-sanitize-with tests/book/sanitize.cfg tests $(NOTEBOOKS)

lint: $(STAMP)
	$(BIN)/ruff check nasbook tests tools $(wildcard benchmarks) $(NOTEBOOKS)
	$(BIN)/mypy nasbook

# Files that begin with _ are not benchmarks. Every script takes --device, --rounds, --record and --records-dir.
bench: $(STAMP)
	@for script in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
		echo; echo "== $$script $(BENCH)"; $(BIN)/python "$$script" $(BENCH) || exit 1; done

check-site: $(STAMP)
	$(BIN)/python tools/check_site.py _build/html --screenshots _build/screenshots

# Refreshes book/_static/vendor (committed); needs npm.
vendor:
	$(PYTHON) tools/vendor.py

clean:
	rm -rf _build dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nasbook tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
