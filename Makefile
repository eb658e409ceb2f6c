# Each target does all of its own set-up: python3 (3.10 or later) and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo pictures test test-integration test-long test-oldest lint docs wheel clean

install: $(VENV)/.installed

# Pinned versions, so that the same commands give the same result tomorrow. On a machine without a GPU,
# `make install PIP_ARGS="--extra-index-url URL"` with the address of PyTorch's CPU wheels saves gigabytes.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) --quiet --constraint constraints.txt torch torchvision setuptools
	$(BIN)/python -m pip install $(PIP_ARGS) --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: install
	$(BIN)/mvit-video demo configs/demo/motion.yaml --output demo_output --overwrite

# The pictures of README.md; needs `make demo` and a Chromium.
pictures: install
	$(BIN)/python tools/pictures.py demo_output docs/pictures

# Three tiers. Two processes with one thread each: most of what is tested waits or is small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 20

test: install
	$(PYTEST) -m "not integration and not long" --numprocesses 2 --dist worksteal

test-integration: install
	$(PYTEST) -m integration --numprocesses 2 --dist worksteal

test-long: install
	$(PYTEST) -m long --numprocesses 2 --dist worksteal

# The lower bounds of pyproject.toml, in an environment of their own, and what of the tests rests on these packages.
OLDEST := .venv-oldest

$(OLDEST)/.installed: pyproject.toml setup.py tools/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) tools/oldest.py > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install $(PIP_ARGS) --quiet --constraint $(OLDEST)/oldest.txt --editable ".[all]" \
		"pytest>=8" "pytest-xdist>=3.6" "timm>=1.0" filelock setuptools
	touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not integration and not long" --numprocesses 2 --dist worksteal \
		tests/test_doctor.py tests/data/video tests/data/test_transforms.py tests/data/test_randaugment.py \
		tests/inference/test_predictor.py tests/inference/test_export.py tests/model/test_mvit.py

# What programs import: `mvit_video` itself, the modules of the names that it hands on, and of what those hold.
PUBLIC := __init__.py api.py config/schema.py data/dataset.py data/lists/records.py data/lists/formats.py data/make_loader.py \
	data/transform_registry.py data/video/reader.py engine/losses.py engine/trackers.py evaluation/results.py \
	evaluation/views.py inference/export.py inference/predictor.py model/registry.py model/weights/card.py \
	model/weights/files.py model/weights/load.py model/weights/zoo.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent $(addprefix mvit_video/,$(PUBLIC))

# dist/*.whl and dist/*.tar.gz; tests/test_wheel.py tries them far from any checkout.
wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -c "import setuptools.build_meta as b; b.build_sdist('dist')"

# site/index.html, from the pages in docs/, the docstrings and the settings; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(OLDEST) demo_output site dist build
