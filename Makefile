# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PHOTO ?=
SKIMAGE_PHOTOS = $$($(BIN)/python -c "import skimage.data, pathlib; folder = pathlib.Path(skimage.data.__file__).parent; print(folder / 'astronaut.png', folder / 'chelsea.png', folder / 'coffee.png')")

.PHONY: demo test test-slow lint format bench checkpoints clean

$(VENV)/.ready: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.ready  ## photos through every shipped tokenizer: make demo, or make demo PHOTO=path
	$(BIN)/pqdiff reconstruct $(if $(PHOTO),"$(PHOTO)",$(SKIMAGE_PHOTOS)) --output demo
	@echo "Look at the panels in $(CURDIR)/demo"

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.quantizer_speed --output benchmarks/results/quantizer_speed.json

checkpoints: $(VENV)/.ready  ## refit the shipped tokenizers: make checkpoints PHOTOS=folder ALSO=folder
	$(BIN)/python training/fit_tokenizers.py --photos "$(PHOTOS)" $(if $(ALSO),--also "$(ALSO)")

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
