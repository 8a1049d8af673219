"""Tokenizers from Gaussian autoencoders of diffusers, without training: by Gaussian Quant, by TokenBridge, or by product
quantization fitted to their latents.

Gaussian Quant codes a group of latents with few errors if its codebook has about as many bits as the posterior of the
group diverges from the prior (Xu et al. 2025, arXiv 2512.06609, theorem 1). So the divergence is measured first.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from pqdiff.data.images.reading import normalize
from pqdiff.fitting.closed_form import balanced_groups
from pqdiff.fitting.kmeans import fit_codebooks
from pqdiff.fitting.latents import measure_latents
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.loading import downsample_factor, load_autoencoder
from pqdiff.models.presets import preset_config, preset_factor
from pqdiff.transforms.gaussian_vae import VAE_CLASSES

_LARGEST_BITS = 16  # of a codebook that is advised: the search takes time in proportion to its size
_SAMPLE = 150_000  # vectors for k-means


@dataclass(frozen=True)
class Posteriors:
    """Statistics of the posteriors of an autoencoder over images.

    Attributes:
        mean: of latents drawn from the posteriors, per channel `(d,)`, float64.
        variance: likewise.
        bits: mean divergence of the posterior from N(mean, variance), per channel `(d,)`, in bits.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    bits: torch.Tensor

    def bits_of_groups(self, codebook_dim: int) -> torch.Tensor:
        """Bits `(d / codebook_dim,)` of the groups of channels that Gaussian Quant codes together (strided)."""
        return self.bits.view(codebook_dim, -1).sum(dim=0)


@torch.no_grad()
def measure_posteriors(vae, images: Sequence[torch.Tensor]) -> Posteriors:
    """Statistics of the posteriors of uint8 images `(3, H, W)`.

    With latents scaled by their mean and variance, E[mean^2 + variance - 1] is 0: what is left of the divergence is
    E[log(variance / posterior variance)] / 2.

    Raises:
        ValueError: if the autoencoder has no Gaussian posterior, or there are no images.
    """
    check_gaussian(vae)
    if not len(images):
        raise ValueError("images is empty: give some images to measure latents on")
    count, sums = 0, torch.zeros(4, vae.config.latent_channels, dtype=torch.float64)
    for image in images:
        posterior = vae.encode(normalize(image)[None].to(vae.device, vae.dtype)).latent_dist
        mean, logvar = (x[0].flatten(1).double().cpu() for x in (posterior.mean, posterior.logvar))  # (d, h w)
        sums += torch.stack([x.sum(dim=1) for x in (mean, mean.square(), logvar.exp(), logvar)])
        count += mean.shape[1]
    mean, square, inner, logvar = sums / count
    variance = (square - mean.square() + inner).clamp_min(1e-12)
    return Posteriors(mean, variance, (variance.log() - logvar) / (2 * math.log(2)))


def check_gaussian(vae) -> None:
    """ValueError unless the autoencoder has a Gaussian posterior and latents of images."""
    name = type(vae).__name__
    if name not in VAE_CLASSES:
        raise ValueError(
            f"vae ({name}) cannot be converted: it has no Gaussian posterior of image latents; choose an autoencoder of "
            f"one of the classes {', '.join(VAE_CLASSES)}"
        )


def check_rate(posteriors: Posteriors, codebook_size: int, codebook_dim: int, tolerance: float = 1.0) -> None:
    """ValueError, with settings that fit, if a group of channels carries more bits than its codeword."""
    most, available = float(posteriors.bits_of_groups(codebook_dim).max()), math.log2(codebook_size)
    if most <= available + tolerance:
        return
    fits = {dim: math.ceil(float(posteriors.bits_of_groups(dim).max())) for dim in _divisors(len(posteriors.bits))}
    advice = [
        f"codebook_dim {dim} with codebook_size {2**bits}" for dim, bits in fits.items() if bits <= _LARGEST_BITS
    ]
    raise ValueError(
        f"codebook_size ({codebook_size}) has {available:g} bits, but groups of {codebook_dim} channels carry up to "
        f"{most:.1f} bits: Gaussian Quant would lose what is beyond. "
        + (
            f"What fits: {', '.join(advice)}"
            if advice
            else "No codebook fits: train the autoencoder with a target divergence"
        )
        + "; or force it"
    )


def convert_gaussian_vae(
    vae,
    images: Sequence[torch.Tensor],
    quantizer_type: str = "gaussian",
    quantizer_config: dict | None = None,
    force: bool = False,
    posteriors: Posteriors | None = None,
) -> AutoencoderPQ:
    """A discrete tokenizer with the networks of a Gaussian autoencoder, without training.

    Args:
        vae: `AutoencoderKL` or `AsymmetricAutoencoderKL`, e.g. of Stable Diffusion, SDXL, SD3 or Flux.
        images: uint8 `(3, H, W)`, at the resolution the tokenizer is meant for; read twice.
        quantizer_type: `gaussian` (needs `codebook_size` and `codebook_dim`), `token_bridge`, or any quantizer without
            weights that must be learned, such as `finite_scalar`.
        quantizer_config: its arguments.
        force: convert although the codebook has too few bits for the posteriors.
        posteriors: what `measure_posteriors` gave for these images; None to measure them here.

    Returns:
        The tokenizer in eval mode, on the CPU. `encode` and `decode` take standardized latents, not those of the
        autoencoder times its scaling factor.

    Raises:
        ValueError: if the autoencoder cannot be converted, or `gaussian` does not fit its posteriors; the message names
            settings that do.
    """
    posteriors = posteriors or measure_posteriors(vae, images)
    config = dict(quantizer_config or {})
    if quantizer_type == "gaussian" and not force and {"codebook_size", "codebook_dim"} <= set(config):
        check_rate(posteriors, config["codebook_size"], config["codebook_dim"])
    model = _build(vae, quantizer_type, config)
    model.transform.set_map(posteriors.mean.float(), posteriors.variance.rsqrt().float().diag())
    measure_latents(model, images)
    return model


@torch.no_grad()
def fit_on_latents(
    vae, images: Sequence[torch.Tensor], num_subspaces: int, codebook_size: int, seed: int = 0
) -> AutoencoderPQ:
    """A product-quantized tokenizer with the networks of a Gaussian autoencoder: rotation, allocation and k-means.

    The principal components of the latents are dealt out to the subspaces so that each has the same product of variances,
    as in `fit_closed_form`.

    Args:
        vae: see `convert_gaussian_vae`.
        images: see `convert_gaussian_vae`.
        num_subspaces: number of tokens S per position; must divide the latent channels.
        codebook_size: number of codewords K.
        seed: of the sample for k-means, and of k-means.

    Raises:
        ValueError: if the autoencoder cannot be converted, or there are fewer positions than codewords.
    """
    check_gaussian(vae)
    model = _build(vae, "product", {"num_subspaces": num_subspaces, "codebook_size": codebook_size})
    rows = []
    for image in images:
        means = vae.encode(normalize(image)[None].to(vae.device, vae.dtype)).latent_dist.mean
        rows.append(means[0].flatten(1).T.float().cpu())  # (h w, d)
    if not rows:
        raise ValueError("images is empty: give some images to fit to")
    rows = torch.cat(rows)
    generator = torch.Generator().manual_seed(seed)
    offset = rows.mean(dim=0)
    variances, components = torch.linalg.eigh((rows - offset).double().T.cov())
    variances, components = variances.flip(0), components.flip(1)  # descending
    order = balanced_groups(variances.clamp_min(1e-12).tolist(), num_subspaces).flatten()
    rotation = components[:, order].T.float()
    sample = rows[torch.randperm(len(rows), generator=generator)[:_SAMPLE]]
    vectors = ((sample - offset) @ rotation.T).T.unflatten(0, (num_subspaces, -1)).contiguous()  # (S, d / S, N)
    model.quantizer.codebooks.copy_(fit_codebooks(vectors, codebook_size, generator))
    model.transform.set_map(offset, rotation)
    measure_latents(model, images)
    return model


def fit_preset_on_latents(source: str, images: Iterable[torch.Tensor], preset: str, seed: int = 0) -> AutoencoderPQ:
    """`fit_on_latents` for the autoencoder at `source`, as `load_autoencoder` takes it, with S and K of a preset.

    Images may have any size of at least F: what is beyond a multiple of F is cut off.

    Raises:
        ValueError: if the preset has another F or d than the autoencoder.
    """
    vae = load_autoencoder(source)
    check_gaussian(vae)
    config = preset_config(preset)
    shape, channels = config["quantizer_config"], vae.config.latent_channels
    factor = downsample_factor(vae)
    if (preset_factor(preset), config["latent_channels"]) != (factor, channels):
        raise ValueError(f"preset ({preset}) must begin with f{factor}-d{channels}, as the autoencoder has it")
    whole = [image[:, : image.shape[1] // factor * factor, : image.shape[2] // factor * factor] for image in images]
    return fit_on_latents(vae, whole, shape["num_subspaces"], shape["codebook_size"], seed)


def _build(vae, quantizer_type: str, quantizer_config: dict) -> AutoencoderPQ:
    """The model of an autoencoder and a fresh quantizer."""
    model = AutoencoderPQ(
        transform_type="gaussian_vae",
        transform_config={
            "vae_class": type(vae).__name__,
            "vae_config": {key: value for key, value in vae.config.items() if not key.startswith("_")},
        },
        quantizer_type=quantizer_type,
        quantizer_config=quantizer_config,
        latent_channels=vae.config.latent_channels,
        in_channels=vae.config.in_channels,
        sample_size=vae.config.sample_size,
    )
    model.transform.vae.load_state_dict(vae.state_dict())
    return model.eval()


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
