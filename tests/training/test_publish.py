"""What a run leaves behind: pipeline, variant file, samples and card, here and on the Hub."""

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from pqdiff import PQStableDiffusionPipeline
from pqdiff.hub.push import push_folder
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS, connect, run_in_fresh_process
from tests.tiny import SIDE
from tests.training.support import REFERENCE, STAGES, adapt, weights_of

PROMPT = "a small red circle"
LOAD = """
import sys, torch
import pqdiff

pipe = pqdiff.PQStableDiffusionPipeline.from_pretrained("user/tiny", cache_dir="pipe")
pipe.set_progress_bar_config(disable=True)
image = pipe("a small red circle", num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)).images
torch.save({"unet": pipe.unet.state_dict(), "image": image}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def pushed(models, tmp_path_factory):
    """Folder of a run that was pushed, the files that the Hub has, and the address of the Hub."""
    folder = tmp_path_factory.mktemp("pushed")
    with serve_hub({}, TOKENS) as hub, pytest.MonkeyPatch.context() as patch:
        connect(patch, hub.address, "token of user", folder)
        options = {"push_to_hub": "user/tiny", "validation_prompts": (PROMPT,), "inference_steps": 2}
        options |= {"license": "apache-2.0", "checkpointing_steps": 100}
        adapt(models, folder / "run", **REFERENCE, **options)
        yield folder / "run", hub.repositories["user/tiny"].files, hub.address


@pytest.mark.slow
def test_the_pipeline_comes_back_by_repo_id_with_the_ema_weights(pushed, reference, tmp_path):
    run, _, address = pushed
    loaded = run_in_fresh_process(LOAD, address, tmp_path)
    expected = weights_of(reference / "pipeline" / "unet")
    assert loaded["unet"].keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded["unet"].items())
    pipe = PQStableDiffusionPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(PROMPT, num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)).images
    torch.testing.assert_close(loaded["image"], image)


def test_everything_that_people_look_at_is_uploaded_and_nothing_that_trained_it(pushed):
    _, files, _ = pushed
    assert {"README.md", "variant.yaml", "model_index.json", "samples/validation.png"} <= set(files)
    assert {"unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"} <= set(files)
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name or name.endswith(".pkl")]


def test_the_variant_file_says_what_was_done(pushed):
    run, files, _ = pushed
    variant = yaml.safe_load(files["variant.yaml"])
    assert variant["stages"] == STAGES
    assert (variant["base"], variant["autoencoder"]) == ("base", "linear")
    assert (variant["sample_size"], variant["resolution"], variant["batch_size"]) == (16, SIDE, 2)
    assert (run / "pipeline" / "variant.yaml").read_bytes() == files["variant.yaml"]


def test_the_card_names_base_steps_and_license_but_no_folder_of_this_machine(pushed, models):
    run, files, _ = pushed
    text = files["README.md"].decode()
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "text-to-image")
    assert 'from_pretrained("user/tiny"' in text
    assert "8 steps" in text
    assert str(models) not in text
    assert str(run) not in text
    configurations = b"".join(content for name, content in files.items() if name.endswith("json"))
    assert str(run).encode() not in configurations
    assert str(models).encode() not in configurations


def test_without_a_push_the_folder_is_the_same(reference, pushed):
    names = {p.relative_to(reference / "pipeline").as_posix() for p in (reference / "pipeline").rglob("*.*")}
    assert names <= set(pushed[1])
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names
    assert ModelCard.load(reference / "pipeline" / "README.md").data.license == "unknown"


def test_a_result_that_is_pushed_later_loads_by_its_repository_in_half_precision(reference, tmp_path, monkeypatch):
    with serve_hub({}, TOKENS) as hub:
        connect(monkeypatch, hub.address, "token of user", tmp_path)
        push_folder(reference / "pipeline", "user/later")
        files = hub.repositories["user/later"].files
        half = LOAD.replace("user/tiny", "user/later").replace("cache_dir", 'variant="fp16", cache_dir')
        loaded = run_in_fresh_process(half, hub.address, tmp_path)
    assert b'from_pretrained("user/later", dtype=torch.float16, variant="fp16")' in files["README.md"]
    expected = weights_of(reference / "pipeline" / "unet")
    assert all(torch.equal(loaded["unet"][name], tensor.half().float()) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [("not a valid//id", "token of user", "must be user/name"), ("user/tiny", None, "not logged in")],
)
def test_a_push_that_cannot_succeed_is_refused_before_the_first_step(
    models, tmp_path, monkeypatch, repository, token, said
):
    connect(monkeypatch, "http://127.0.0.1:9", token, tmp_path)
    with pytest.raises(ValueError, match=rf"--push_to_hub: .*{said}"):
        adapt(models, tmp_path / "run", push_to_hub=repository)
    assert not (tmp_path / "run").exists()
