"""Validation images come from fixed noise and the EMA weights, and do not change what is trained."""

import pytest
import torch
from PIL import Image

from pqdiff import PQStableDiffusionPipeline
from pqdiff.training.validation import PromptValidation, ValidationOptions
from tests.training.loops import open_session
from tests.training.support import REFERENCE, adapt, assert_same_state, losses, state_of

PROMPTS = ("a small red circle", "two large blue squares")
VALIDATION = {"validation_prompts": PROMPTS, "validation_steps": 4, "inference_steps": 2, "guidance_scale": 2}


@pytest.fixture(scope="module")
def generated(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    adapt(models, folder, **REFERENCE, **VALIDATION)
    return folder


def test_a_grid_is_generated_at_every_validation_step(generated):
    names = [path.name for path in sorted((generated / "validation").iterdir())]
    assert names == ["step-00000004.png", "step-00000008.png"]
    first, last = (Image.open(generated / "validation" / name) for name in names)
    assert first.size == last.size
    assert first.tobytes() != last.tobytes()


def test_training_is_the_same(generated, reference):
    assert_same_state(state_of(generated), state_of(reference))
    assert losses(generated) == losses(reference)


def test_the_last_grid_shows_what_the_saved_pipeline_generates(generated):
    sample = Image.open(generated / "pipeline" / "samples" / "validation.png")
    assert sample.tobytes() == Image.open(generated / "validation" / "step-00000008.png").tobytes()
    pipe = PQStableDiffusionPipeline.from_pretrained(generated / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(number)
        (image,) = pipe(prompt, num_inference_steps=2, guidance_scale=2, generator=generator).images
        side = 192
        top = sample.height // 2 * number
        part = sample.crop((0, top, sample.width, top + sample.height // 2))
        enlarged = image.resize((side, side), Image.Resampling.NEAREST)
        assert enlarged.tobytes() in [
            part.crop((x, y, x + side, y + side)).tobytes() for x in range(8) for y in range(part.height - side + 1)
        ]


def test_trackers_get_the_images(models, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stages = [{"resolution": 32, "steps": 2, "learning_rate": 1e-3, "trainable": "all"}]
    adapt(models, tmp_path, **{**VALIDATION, "validation_steps": 2}, stages=stages, report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "logs" / "pqdiff-adapt-sd"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("validation")] == [2]


def test_a_tracker_that_takes_no_images_does_not_end_the_run(models, tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def refuse(*args, **kwargs):
        raise NotImplementedError("no images")

    monkeypatch.setattr(TensorBoardTracker, "log_images", refuse)
    stages = [{"resolution": 32, "steps": 2, "learning_rate": 1e-3, "trainable": "all"}]
    adapt(models, tmp_path, **{**VALIDATION, "validation_steps": 1}, stages=stages, report_to="tensorboard")
    assert "tensorboard did not take the validation images (NotImplementedError" in capsys.readouterr().out


def test_generating_leaves_models_and_their_modes_in_place(models, tmp_path):
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(str(models / "base"), str(models / "linear"))
    pipe.unet.train()
    unet, state = pipe.unet, torch.get_rng_state()
    options = ValidationOptions(PROMPTS, inference_steps=1, guidance_scale=1.0)
    validation = PromptValidation(open_session(tmp_path), options, pipe)
    assert len(validation.generate()) == 2
    assert pipe.unet is unet
    assert (pipe.unet.training, pipe.vae.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), state)
