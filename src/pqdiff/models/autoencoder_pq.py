"""AutoencoderPQ: images to quantized latents and back, a drop-in VAE for Stable Diffusion in diffusers.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN). Three parts in
this order, none of which knows the others' insides:

    encode: image -> transform.analysis -> quantizer.encode -> indices -> quantizer.to_latents -> statistics -> latents
    decode: latents -> statistics -> quantizer.snap -> codes -> transform.synthesis -> refiner -> image

There is one search per encode and one per snap. Unlike the reference implementation the latents are standardized on the
way out of `encode`, so `scaling_factor` is 1.
"""

import torch
from diffusers import ModelMixin  # diffusers' loader looks for this name in the defining module
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from pqdiff.models.checks import (
    check_config,
    check_image,
    check_indices,
    check_keys,
    check_latents,
    check_quantize,
    refuse_wrong_values,
)
from pqdiff.models.outputs import AutoencoderPQForwardOutput, AutoencoderPQOutput, PQLatentDistribution
from pqdiff.models.presets import preset_config
from pqdiff.models.statistics import LatentStatistics
from pqdiff.models.tiling import run_tiled
from pqdiff.quantizers import FP32_TENSORS, build_quantizer
from pqdiff.transforms import build_transform
from pqdiff.transforms.refiner import PixelRefiner


class AutoencoderPQ(ModelMixin, AutoencoderMixin, ConfigMixin, PeftAdapterMixin):
    """Autoencoder with quantized latents.

    Images are `(B, C, H, W)` in [-1, 1], with sides divisible by F = 2 ** (len(block_out_channels) - 1).

    Args:
        transform_type: registered name of the transform between images and what the quantizer codes: `conv` (the paper's
            networks), `patch` (linear), or `sum` of several.
        transform_config: its constructor's arguments after the channels.
        quantizer_type: registered name of the quantizer.
        quantizer_config: its constructor's arguments after `latent_channels`.
        latent_channels: number of latent channels d.
        refiner_config: `channels` and `blocks` of a small network over the decoded pixels; None for none.
        statistics_config: `mean` and `std` of the quantizer's latents (d numbers each) and `exponent`, gamma of the
            standardization (see `statistics.py`); None for latents as they are.
        in_channels: channels C of the image.
        block_out_channels: None; derived from the transform, because stock pipelines read F from it.
        sample_size: side in pixels of the images the model was made for.
        scaling_factor: 1.0, because `encode` standardizes; stock pipelines multiply by it.
        shift_factor: None, for the same reason.
        force_upcast: False: nothing here overflows in half precision.
        preset: name of the preset this configuration was made from, for the record.

    Raises:
        ValueError: if arguments do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock2D", "PatchTransform"]
    _keep_in_fp32_modules = FP32_TENSORS
    _skip_layerwise_casting_patterns = ["quantizer", "statistics", "_conv"]
    _group_offload_block_modules = ["transform", "refiner", "quantizer"]

    @register_to_config
    @refuse_wrong_values
    def __init__(
        self,
        transform_type: str = "conv",
        transform_config: dict = {},  # only read, as the other mappings
        quantizer_type: str = "product",
        quantizer_config: dict = {"num_subspaces": 64, "codebook_size": 512},
        latent_channels: int = 128,
        refiner_config: dict | None = None,
        statistics_config: dict | None = None,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] | None = None,
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        force_upcast: bool = False,
        preset: str | None = None,
    ):
        super().__init__()
        if not 0 < scaling_factor < float("inf"):
            raise ValueError(f"scaling_factor ({scaling_factor}) must be a positive number: 1, as encode standardizes")
        self.quantizer = build_quantizer(quantizer_type, latent_channels, quantizer_config)
        self.transform = build_transform(
            transform_type, in_channels, self.quantizer.in_channels, self.quantizer.code_channels, transform_config
        )
        derived = self.transform.block_out_channels
        if block_out_channels is not None and tuple(block_out_channels) != derived:
            raise ValueError(
                f"block_out_channels ({block_out_channels}) must be None or what the transform has: {derived}"
            )
        self.register_to_config(block_out_channels=derived)
        self.downsample_factor = self.transform.downsample_factor
        check_keys("statistics_config", statistics_config, ("mean", "std", "exponent"))
        self.statistics = LatentStatistics(latent_channels, **(statistics_config or {}))
        self.refiner = None
        if refiner_config is not None:
            check_keys("refiner_config", refiner_config, ("channels", "blocks"))
            self.refiner = PixelRefiner(in_channels, self.downsample_factor, **refiner_config)

        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = max(sample_size, 2 * self.downsample_factor)
        self.tile_overlap_factor = 0.25

    @classmethod
    def from_preset(cls, preset: str, **overrides) -> "AutoencoderPQ":
        """A fresh, untrained autoencoder in one of the paper's configurations, e.g. `f8-d128-s64-k512`."""
        return cls(**{**preset_config(preset), **overrides})

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict | tuple:
        """As in diffusers, which takes a string for the next place to look: only a JSON object is a configuration."""
        loaded = super().load_config(*args, **kwargs)
        check_config(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "AutoencoderPQ":
        """As in diffusers, which refuses `low_cpu_mem_usage=False` for models that keep some tensors in fp32. Ours keep
        them by themselves (`Fp32Module`) once they are built."""
        if kwargs.get("low_cpu_mem_usage", True) is not False:
            return super().from_pretrained(*args, **kwargs)
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        plain = type(cls.__name__, (cls,), {"_keep_in_fp32_modules": None})
        result = super(AutoencoderPQ, plain).from_pretrained(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result  # with output_loading_info
        model.__class__ = cls
        model.to(dtype or torch.float32)  # not the precision of the file
        return result

    # Public interface: images, tokens and standardized latents.

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderPQOutput | tuple:
        """Quantized, standardized latents of images.

        Args:
            x: images `(B, C, H, W)` in [-1, 1].
            return_dict: whether to return an `AutoencoderPQOutput` or the tuple `(latent_dist, latents, indices)`.

        Raises:
            ValueError: if the sides of the image are not divisible by F; the message names the sizes that work.
        """
        indices = self._indices(x)
        latents = self.latents_from_indices(indices).to(x.dtype)
        lost = self.transform.positions_that_see(x.isnan().any(dim=1))
        latents = latents.masked_fill(lost, torch.nan)  # tokens cannot say it
        distribution = PQLatentDistribution(latents)
        if not return_dict:
            return distribution, latents, indices
        return AutoencoderPQOutput(latent_dist=distribution, latents=latents, indices=indices)

    @apply_forward_hook
    def decode(
        self,
        z: torch.Tensor,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        quantize: bool | float = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Images of standardized latents.

        Args:
            z: latents `(B, d, h, w)`, as `encode` or a diffusion model gives them.
            return_dict: whether to return a `DecoderOutput` or the tuple `(sample,)`.
            generator: accepted because pipelines pass it; decoding draws nothing.
            quantize: True snaps the latents to the nearest codewords first. A number snaps them softly: it is the standard
                deviation of the error that the latents have, and the mean of the codewords given the latents is decoded.
                False decodes the latents as they are.

        Returns:
            Images `(B, C, F h, F w)`, nominally in [-1, 1], not clamped.
        """
        check_latents(z, self.config.latent_channels)
        check_quantize(quantize)
        sample = self._by_slices(lambda part: self.synthesis(self._codes(part, quantize).to(z.dtype)), z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Snap standardized latents `(B, d, h, w)` to codewords: latents of the same shape and dtype, and indices."""
        check_latents(latents, self.config.latent_channels)
        indices = self.quantizer.nearest(self.statistics.restore(latents))
        return self.latents_from_indices(indices).to(latents.dtype), indices

    def latents_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Standardized latents `(B, d, h, w)` of tokens `(B, G, h, w)`: exactly what `encode` gave with them, in fp32."""
        return self.statistics.standardize(self.quantizer.to_latents(indices))

    @apply_forward_hook
    def encode_to_indices(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, G, H/F, W/F)` of images `(B, C, H, W)` in [-1, 1]. See `encode`."""
        return self._indices(x)

    @apply_forward_hook
    def decode_from_indices(self, indices: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Images of tokens `(B, G, h, w)`: what `decode` makes of the latents they stand for."""
        check_indices(indices, self.quantizer.codebook_sizes)
        sample = self._by_slices(lambda part: self.synthesis(self.quantizer.decode(part).to(self.dtype)), indices)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> AutoencoderPQForwardOutput | tuple:
        """Reconstruct images `(B, C, H, W)` in [-1, 1], with the quantizer's loss and gradients.

        `sample_posterior` and `generator` are accepted as in `AutoencoderKL`.

        Returns:
            An `AutoencoderPQForwardOutput`, or the tuple `(sample, commit_loss, indices, logs)`.
        """
        check_image(sample, self.config.in_channels, self.downsample_factor)
        output = self.quantizer(self._analysis(sample))
        reconstruction = self.synthesis(output.codes)
        if not return_dict:
            return reconstruction, output.loss, output.indices, output.logs
        return AutoencoderPQForwardOutput(
            sample=reconstruction, commit_loss=output.loss, indices=output.indices, logs=output.logs
        )

    @property
    def bits_per_pixel(self) -> float:
        """Fixed rate of the tokens: bits per position / F^2."""
        return self.quantizer.bits_per_position / self.downsample_factor**2

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights that make the image, at which the adversarial loss is balanced."""
        return self.transform.last_layer if self.refiner is None else self.refiner.last.weight

    # Between images and codes.

    def _indices(self, x: torch.Tensor) -> torch.Tensor:
        check_image(x, self.config.in_channels, self.downsample_factor)
        return self._by_slices(lambda image: self.quantizer.encode(self._analysis(image)), x)

    def _codes(self, latents: torch.Tensor, quantize: bool | float) -> torch.Tensor:
        restored = self.statistics.restore(latents)
        if quantize is False:
            return self.quantizer.lift(restored)
        noise = None if quantize is True else self.statistics.restore_noise(quantize, latents)
        return self.quantizer.snap(restored, noise)

    def _analysis(self, x: torch.Tensor) -> torch.Tensor:
        tile, overlap = self._tile_cells()
        if not self.use_tiling or max(x.shape[2:]) <= tile * self.downsample_factor:
            return self.transform.analysis(x)
        channels, halo = self.quantizer.in_channels, self.transform.reach or 0
        return run_tiled(self.transform.analysis, x, self.downsample_factor, tile, overlap, channels, 1, halo)

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        """Images of codes `(B, code_channels, h, w)` of the quantizer, with their gradient."""
        codes = codes.contiguous()  # one memory layout, hence the same pixels whichever way the codes came
        tile, overlap = self._tile_cells()
        if not self.use_tiling or max(codes.shape[2:]) <= tile:
            return self._synthesis_of_tile(codes)
        halo = self.transform.reach or 0
        if self.refiner is not None:
            halo += -(-self.refiner.reach // self.downsample_factor)
        channels = self.config.in_channels
        return run_tiled(self._synthesis_of_tile, codes, 1, tile, overlap, channels, self.downsample_factor, halo)

    def _synthesis_of_tile(self, codes: torch.Tensor) -> torch.Tensor:
        image = self.transform.synthesis(codes)
        return image if self.refiner is None else image + self.refiner(image)

    def _tile_cells(self) -> tuple[int, int]:
        """Side of a tile and overlap of neighbors, in positions. A transform with a reach needs no overlap."""
        tile = max(2, self.tile_sample_min_size // self.downsample_factor)
        return tile, 0 if self.transform.reach is not None else min(
            tile - 1, max(1, int(tile * self.tile_overlap_factor))
        )

    def _by_slices(self, function, batch: torch.Tensor) -> torch.Tensor:
        """`function(batch)`, image by image if slicing is enabled."""
        if not self.use_slicing or len(batch) < 2:
            return function(batch)
        return torch.cat([function(part) for part in batch.split(1)])
