PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?= -n auto --dist loadfile
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-stitch demo-width space test docs families quality style clean fuzz chaos

demo: $(VENV)/installed  ## compress the bundled model in under three minutes and show where the result lies
	$(BIN)/hf-prune demo

demo-stitch: $(VENV)/installed  ## one model of the bundled one and its three specialists
	$(BIN)/hf-prune demo stitch

demo-width: $(VENV)/installed  ## heads and neurons of the bundled model
	$(BIN)/hf-prune demo width

space: $(VENV)/installed-dev  ## open the app in the browser
	$(BIN)/hf-prune ui

test: $(VENV)/installed-dev  ## fast tests, slow ones, those in a real browser, then a real model
	$(BIN)/python -m pytest $(PYTEST_FLAGS)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)
	$(BIN)/python -m pytest -m browser
	$(BIN)/python -m pytest -m real -rs

fuzz: $(VENV)/installed-dev  ## 200,000 spoiled files instead of the 2,000 of the fast tests
	HF_PRUNE_FUZZ=200000 $(BIN)/python -m pytest tests/fuzz $(PYTEST_FLAGS) --dist load

chaos: $(VENV)/installed-dev  ## kill -9 two hundred times, from the search to the upload
	$(BIN)/python -m tests.chaos

docs: $(VENV)/installed-dev  ## build the pages, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

families: $(VENV)/installed-dev  ## write the list of families in docs anew
	$(BIN)/python -m tests.supported

quality: $(VENV)/installed-dev  ## what CI checks besides the tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

style: $(VENV)/installed-dev  ## fix what can be fixed
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) pruned-demo pruned-demo.run stitched-demo stitched-demo.run narrow-demo narrow-demo.run

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make a second `make demo` start at once; a changed dependency installs again.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/installed
