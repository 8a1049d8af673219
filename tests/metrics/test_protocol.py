"""All metrics of reconstructions together: one image at a time, in batches, and over processes."""

import json

import pytest
import torch
from torch import distributed

from pqdiff.data.images.reading import normalize, to_image, to_pixels
from pqdiff.metrics import (
    MDSI,
    SSIMULACRA2,
    BitsPerPixel,
    CodebookUsage,
    DatasetPSNR,
    EntropyBitsPerPixel,
    HaarPSI,
    ImagePSNR,
    ImageSSIM,
)
from pqdiff.metrics.evaluation import evaluate_reconstruction
from pqdiff.metrics.protocol import ReconstructionMetrics
from pqdiff.models.fingerprint import fingerprint
from tests.processes import run_pair
from tests.tiny import tiny_autoencoder

DENSE, SPARSE = (4, 6), (4, 2**40)


def batch(count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 images, reconstructions with errors, and tokens that are below 4 and 6."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randint(40, 200, (count, 3, 16, 24), dtype=torch.uint8, generator=generator)
    result = reference + torch.randint(0, 30, reference.shape, dtype=torch.uint8, generator=generator)
    tokens = [torch.randint(size, (count, 4, 6), generator=generator) for size in DENSE]
    return reference, result, torch.stack(tokens, dim=1)


def mean_difference(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (images - others).abs().mean((1, 2, 3))


def known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def test_every_number_is_that_of_its_own_metric():
    metrics = ReconstructionMetrics(DENSE, {"lpips_vgg": mean_difference})
    reference, result, indices = batch()
    metrics.update(reference, result, indices)
    expected = {}
    for name, metric in (("psnr_dataset", DatasetPSNR()), ("psnr_image_mean", ImagePSNR()), ("ssim", ImageSSIM())):
        expected[name] = metric(result, reference)
    expected["lpips_vgg"] = mean_difference(normalize(result), normalize(reference)).mean()
    expected["bits_per_pixel"] = BitsPerPixel(DENSE)(indices, 3 * 16 * 24)
    expected["entropy_bits_per_pixel"] = EntropyBitsPerPixel(DENSE)(indices, 3 * 16 * 24)
    expected |= {f"codebook_{name}": value for name, value in CodebookUsage(DENSE)(indices).items()}
    values = metrics.compute()
    assert values == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-6)


def test_batches_accumulate_and_reset_forgets():
    whole, parts = ReconstructionMetrics(DENSE), ReconstructionMetrics(DENSE)
    tensors = batch(5)
    whole.update(*tensors)
    for part in zip(*(tensor.split(2) for tensor in tensors), strict=True):
        parts.update(*part)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)
    parts.reset()
    parts.update(*batch(2, seed=1))
    once = ReconstructionMetrics(DENSE)
    once.update(*batch(2, seed=1))
    assert parts.compute() == once.compute()


def test_perception_is_measured_where_images_are_large_enough():
    metrics, without = ReconstructionMetrics(DENSE, perception=True), ReconstructionMetrics(DENSE)
    for each in (metrics, without):
        each.update(*batch())
    values = metrics.compute()
    assert values.keys() - without.compute().keys() == {"ms_ssim", "haarpsi", "mdsi", "ssimulacra2", "vif"}
    for name, metric in (("haarpsi", HaarPSI()), ("mdsi", MDSI()), ("ssimulacra2", SSIMULACRA2())):
        assert values[name] == pytest.approx(float(metric(*reversed(batch()[:2]))), rel=1e-12)
    assert values["ms_ssim"] is values["vif"] is None  # need sides of 176 and 41


def test_numbers_that_are_not_finite_are_none():
    metrics = ReconstructionMetrics(DENSE)
    reference, _, indices = batch()
    metrics.update(reference, reference, indices)
    values = metrics.compute()
    assert values["psnr_dataset"] is None
    assert values["psnr_image_mean"] == 100


def work(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    results = {}
    for sizes in (DENSE, SPARSE):
        metrics = ReconstructionMetrics(sizes, {"lpips_vgg": mean_difference}, perception=True)
        if rank == 0:  # the other process has no images
            metrics.update(*batch(3))
        results[sizes] = metrics.compute()
        metrics.update(*batch(1, seed=10 + rank))  # the exchange leaves each process what it had counted
        results[sizes, "again"] = metrics.compute()
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def test_processes_add_up_also_if_one_has_no_images(tmp_path):
    run_pair(work, tmp_path)
    for sizes in (DENSE, SPARSE):
        alone = ReconstructionMetrics(sizes, {"lpips_vgg": mean_difference}, perception=True)
        alone.update(*batch(3))
        expected = alone.compute()
        for rank in range(2):
            alone.update(*batch(1, seed=10 + rank))
        for rank in range(2):
            results = torch.load(tmp_path / f"rank{rank}.pt")
            assert known(results[sizes]) == pytest.approx(known(expected), rel=1e-6)
            assert known(results[sizes, "again"]) == pytest.approx(known(alone.compute()), rel=1e-6)


def test_an_evaluation_measures_8_bit_crops_and_says_how():
    model = tiny_autoencoder()
    pixels = batch(2)[0]
    images, counted = [to_image(image) for image in pixels], []
    result = evaluate_reconstruction(model, images, 16, counted.append)
    metrics = ReconstructionMetrics(model.quantizer.codebook_sizes, perception=True)
    crops = pixels[..., 4:20]
    with torch.no_grad():
        indices = model.encode_to_indices(normalize(crops))
        metrics.update(crops, to_pixels(model.decode_from_indices(indices).sample), indices)
    assert known(result["metrics"]) == pytest.approx(known(metrics.compute()), rel=1e-5)
    assert result["metrics"].keys() == metrics.compute().keys()
    assert (result["num_images"], counted) == (2, [1, 2])
    assert result["protocol"]["resolution"] == 16
    assert result["protocol"]["fingerprint"] == fingerprint(model)
    assert json.loads(json.dumps(result)) == result


def test_an_evaluation_needs_images():
    with pytest.raises(ValueError, match="images is empty: give at least one image"):
        evaluate_reconstruction(tiny_autoencoder(), [])


def test_a_model_of_nan_is_no_evaluation():
    model = tiny_autoencoder()
    model.last_layer.data[0] = torch.nan
    with pytest.raises(ValueError, match="values that are not finite"):
        evaluate_reconstruction(model, [to_image(batch(1)[0][0])], 16)
