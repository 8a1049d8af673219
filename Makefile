# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PHOTO ?=
RUNS ?= 10
BUSY ?= $(shell nproc)
export PROMPT =
SKIMAGE_PHOTOS = $$($(BIN)/python -c "import skimage.data, pathlib; folder = pathlib.Path(skimage.data.__file__).parent; print(folder / 'astronaut.png', folder / 'chelsea.png', folder / 'coffee.png')")
# No model has seen a red triangle in training.
DEMO_PROMPTS = "a small red circle above a large blue square" \
	"a large red triangle left of a small cyan cross on a gray background" \
	"three small purple squares on a white background" \
	"a large yellow circle in the top right on a black background"

.PHONY: demo test test-slow test-under-load lint format bench checkpoints tiny-suite clean

$(VENV)/.ready: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(VENV)/.ready  ## photos and prompts through every shipped model: make demo, make demo PHOTO=path PROMPT="..."
	$(BIN)/pqdiff reconstruct $(if $(PHOTO),"$(PHOTO)",$(SKIMAGE_PHOTOS)) --output demo --force
	$(BIN)/pqdiff generate --compare --output demo/prompts.png --force -- $(if $(PROMPT),"$$PROMPT",$(DEMO_PROMPTS))
	@echo "Look at the panels and at prompts.png in $(CURDIR)/demo"

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow

test-under-load: $(VENV)/.ready  ## all tests RUNS times beside BUSY endless loops: none may fail on a busy machine
	@loops=; for loop in $$(seq $(BUSY)); do while :; do :; done & loops="$$loops $$!"; done; \
	trap 'test -z "$$loops" || kill $$loops' EXIT; trap 'exit 1' INT TERM; \
	for run in $$(seq $(RUNS)); do echo "run $$run of $(RUNS)"; $(BIN)/python -m pytest -n 2 --dist worksteal || exit 1; done

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready  ## speed of the quantizers and of training, beside other libraries: on an idle machine, 10 minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,benchmarks]"
	$(BIN)/python -m benchmarks.quantizer_speed --output benchmarks/results/quantizer_speed.json --plot docs/quantizer_speed.png
	$(BIN)/python -m benchmarks.train_speed --output benchmarks/results/train_speed.json

checkpoints: $(VENV)/.ready  ## refit the shipped tokenizers: make checkpoints PHOTOS=folder ALSO=folder
	$(BIN)/python training/fit_tokenizers.py --photos "$(PHOTOS)" $(if $(ALSO),--also "$(ALSO)")

tiny-suite: $(VENV)/.ready  ## train the tiny pipelines again, from nothing: about eight hours; run again to go on
	$(BIN)/python training/tiny_suite.py

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
