"""Evaluations: the same numbers on one process and two, interrupted or not; broken images are named."""

import json

import pytest
import torch
from PIL import Image
from torch import distributed

from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.images.reading import to_tensor
from pqdiff.metrics.evaluation import Evaluation, EvaluationRun, evaluate_reconstruction
from pqdiff.metrics.reconstructors import AutoencoderReconstructor, build_reconstructor
from tests.autoencoders import build
from tests.processes import run_pair

SIDE = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five images and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        pixels = torch.randint(256, (18, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    (folder / "2b.png").write_bytes(b"no image")
    return folder


def evaluations() -> dict[str, Evaluation]:
    model = AutoencoderReconstructor(build("networks"), "model")
    return {"model": Evaluation(model, SIDE), "jpeg:75": Evaluation(build_reconstructor("jpeg:75"), SIDE)}


def rows(photos):
    return open_captioned(photos, captions=False)


def results_of(photos, **options) -> dict:
    run = EvaluationRun(evaluations(), strict=False, **options)
    run.run(rows(photos))
    return run.results()


def measure_as_rank(rank: int, photos, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = results_of(photos, rank=rank, processes=2)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one(photos, tmp_path):
    run_pair(measure_as_rank, photos, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    alone = results_of(photos)
    for name, result in alone.items():
        for key in ("num_images", "broken", "data_digest"):
            assert first[name][key] == result[key]
        for key, value in result["metrics"].items():
            expected = value if value is None else pytest.approx(value, rel=1e-9)
            assert first[name]["metrics"][key] == expected


def test_a_run_that_was_killed_goes_on_and_gives_the_same(photos, tmp_path):
    run = EvaluationRun(evaluations(), strict=False, folder=tmp_path / "work", save_every=2)

    def stop(done):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(rows(photos), stop)
    again = EvaluationRun(evaluations(), strict=False, folder=tmp_path / "work", save_every=2)
    assert again.done == 4
    seen = []
    again.run(rows(photos), seen.append)
    assert seen == [5, 6]
    assert again.results() == results_of(photos)


def test_sums_of_another_evaluation_and_damaged_ones_are_refused(photos, tmp_path):
    EvaluationRun(evaluations(), strict=False, folder=tmp_path / "work", save_every=2).run(rows(photos))
    with pytest.raises(ValueError, match="another evaluation"):
        EvaluationRun(evaluations(), folder=tmp_path / "work", recipe={"resolution": 32})
    for path in (tmp_path / "work").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        EvaluationRun(evaluations(), folder=tmp_path / "work")


def test_broken_images_are_named_or_end_the_run(photos):
    results = results_of(photos)
    assert [result["num_images"] for result in results.values()] == [5, 5]
    assert ["2b.png" in result["broken"][0] for result in results.values()] == [True, True]
    with pytest.raises(ValueError, match=r"2b\.png"):
        EvaluationRun(evaluations(), strict=True).run(rows(photos))


def test_without_an_image_there_is_no_result_but_a_reason(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    run = EvaluationRun(evaluations(), strict=False)
    run.run(rows(tmp_path))
    with pytest.raises(ValueError, match=r"no image could be read: .*broken\.png"):
        run.results()
    with pytest.raises(ValueError, match="images is empty"):
        EvaluationRun(evaluations()).results()


def test_a_model_alone_is_measured_as_among_others(photos):
    images = [Image.open(path).convert("RGB") for path in sorted(photos.glob("?.png"))]
    alone = evaluate_reconstruction(build("networks"), images, SIDE)
    assert alone["metrics"] == results_of(photos)["model"]["metrics"]


def test_the_papers_protocol_loses_the_aspect_ratio_and_does_not_round(photos):
    model = build("networks")
    evaluation = Evaluation(AutoencoderReconstructor(model, "model"), SIDE, "paper")
    image = Image.open(photos / "0.png")
    evaluation.add(image)
    pixels = to_tensor(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))[None].float() / 255
    result = (model(pixels * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    expected = -10 * (result - pixels).square().mean().log10()
    found = evaluation.result()
    assert found["metrics"]["psnr_dataset"] == pytest.approx(expected.item(), abs=1e-4)
    assert "aspect ratio" in found["protocol"]["resize"]


def test_bad_settings_are_named():
    reconstructor = AutoencoderReconstructor(build("networks"), "my-model")
    with pytest.raises(ValueError, match=r"resolution \(31\) must be divisible by F = 4 of my-model"):
        Evaluation(reconstructor, 31)
    with pytest.raises(ValueError, match=r"protocol \('papre'\).*'paper'"):
        Evaluation(reconstructor, 32, "papre")
