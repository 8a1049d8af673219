"""Settings of `pqdiff generate` that do not need a model to be checked; what is refused is in test_generate_refusals."""

import pytest

from pqdiff.checkpoints import BUNDLED_PIPELINES
from pqdiff.cli.generation_settings import TITLES, Settings

DEFAULTS = dict.fromkeys(("guidance", "negative", "height", "width", "quantize", "scheduler", "dtype"))


@pytest.mark.parametrize(
    ("given", "knows_scenes_only", "used"),
    [(None, False, 7.5), (None, True, 2.0), (3.0, True, 3.0), (1.0, False, 1.0)],
)
def test_the_default_guidance_depends_on_the_model(given, knows_scenes_only, used):
    assert Settings(**{**DEFAULTS, "steps": 1, "guidance": given}).guidance_for(knows_scenes_only) == used


def test_every_shipped_pipeline_has_a_title():
    assert set(TITLES) == set(BUNDLED_PIPELINES)
