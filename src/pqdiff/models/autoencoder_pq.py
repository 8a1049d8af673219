"""AutoencoderPQ: images to product-quantized latents and back, a drop-in VAE for Stable Diffusion in diffusers.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN). The networks
are diffusers' VQGAN encoder and decoder. Unlike the reference implementation the latents are standardized on the way
out of `encode`, so `scaling_factor` is 1, and a linear path over patches can stand beside the networks or in their place.
"""

import torch
from diffusers import ModelMixin  # diffusers' loader looks for this name in the defining module
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, Decoder, DecoderOutput, Encoder
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..quantizers import QuantizerOutput, build_quantizer
from .autoencoder_checks import (
    check_image,
    check_image_statistics,
    check_indices,
    check_latents,
    check_levels,
    check_parts,
)
from .outputs import AutoencoderPQForwardOutput, AutoencoderPQOutput, PQLatentDistribution
from .patch_networks import KERNEL, PatchNetwork
from .patch_transform import PatchTransform
from .pixel_refiner import PixelRefiner
from .presets import preset_config
from .standardization import LatentStandardization
from .tiling import run_tiled


class AutoencoderPQ(ModelMixin, AutoencoderMixin, ConfigMixin):
    """Autoencoder with quantized latents.

    Images are `(B, 3, H, W)` in [-1, 1], with sides divisible by F = 2 ** (len(block_out_channels) - 1).

    Args:
        in_channels: channels of the input image.
        out_channels: channels of the reconstruction.
        down_block_types: block types of the encoder, one per entry of `block_out_channels`.
        up_block_types: block types of the decoder, likewise.
        block_out_channels: widths of the networks' levels; their number sets F even without networks.
        layers_per_block: residual blocks per level of the encoder (the decoder has one more).
        act_fn: activation of the networks.
        norm_num_groups: groups of the networks' GroupNorm.
        z_channels: channels between a network and the 1x1 convolution beside the quantizer.
        conv_networks: whether there are an encoder and a decoder network.
        patch_shortcut: whether there is a linear path from patches to latents and back.
        hidden_channels: coefficients per patch that codewords stand for beyond `latent_channels`; needs the shortcut.
        class_bases: bases of the classes of patches that the first subspace codes, so that the others code coefficients
            relative to them; 0 for none, else needs the shortcut alone and a product quantizer.
        class_components: principal components of a patch that those bases turn.
        class_candidates: classes that `encode` tries on every patch; the one that reconstructs best is taken.
        patch_network_channels: width of small networks at the resolution of the latents beside the linear path; 0 for none.
        patch_network_blocks: residual blocks of each of the two.
        refiner_channels: width of a small network over the pixels of the decoded picture; 0 for none.
        refiner_blocks: its residual blocks.
        latent_channels: number of latent channels d.
        quantizer_type: registered name of the quantizer.
        quantizer_config: its constructor's arguments after `latent_channels`.
        sample_size: side in pixels of the images the model was made for.
        scaling_factor: 1.0, because `encode` standardizes; stock pipelines multiply by it.
        shift_factor: None, for the same reason.
        force_upcast: False: nothing here overflows in half precision.
        image_mean: channel means to subtract from images in [0, 1]; None to take [-1, 1] as it is.
        image_std: channel standard deviations that go with them.
        channel_mean: d means of the quantized latents before standardization; None to leave them as they are.
        channel_std: d standard deviations that go with them.
        scaling_exponent: gamma of the standardization (see `standardization.py`).
        preset: name of the preset this configuration was made from, for the record.

    Raises:
        ValueError: if there is neither a network nor the shortcut, or arguments do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock2D", "PatchTransform"]
    _keep_in_fp32_modules = ["quantizer", "standardization", "patch_classes"]
    _skip_layerwise_casting_patterns = ["quantizer", "standardization", "hidden_codewords", "patch_classes"]
    _group_offload_block_modules = [
        "encoder",
        "decoder",
        "quant_conv",
        "post_quant_conv",
        "patch_transform",
        "patch_encoder",
        "patch_decoder",
        "refiner",
        "quantizer",
    ]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        z_channels: int = 256,
        conv_networks: bool = True,
        patch_shortcut: bool = False,
        hidden_channels: int = 0,
        class_bases: int = 0,
        class_components: int = 0,
        class_candidates: int = 8,
        patch_network_channels: int = 0,
        patch_network_blocks: int = 2,
        refiner_channels: int = 0,
        refiner_blocks: int = 4,
        latent_channels: int = 128,
        quantizer_type: str = "product",
        quantizer_config: dict = {"num_subspaces": 64, "codebook_size": 512},  # only read
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        force_upcast: bool = False,
        image_mean: tuple[float, ...] | None = None,
        image_std: tuple[float, ...] | None = None,
        channel_mean: tuple[float, ...] | None = None,
        channel_std: tuple[float, ...] | None = None,
        scaling_exponent: float = 0.0,
        preset: str | None = None,
    ):
        super().__init__()
        check_parts(
            conv_networks,
            patch_shortcut,
            in_channels,
            out_channels,
            class_bases,
            hidden_channels=hidden_channels,
            patch_network_channels=patch_network_channels,
        )
        check_levels(down_block_types, up_block_types, block_out_channels)
        check_image_statistics(image_mean, image_std, in_channels)
        self.downsample_factor = 2 ** (len(block_out_channels) - 1)
        self.quantizer = build_quantizer(quantizer_type, latent_channels, quantizer_config)
        self.standardization = LatentStandardization(latent_channels, channel_mean, channel_std, scaling_exponent)

        self.encoder = self.decoder = self.quant_conv = self.post_quant_conv = self.patch_transform = None
        self.patch_encoder = self.patch_decoder = self.refiner = None
        if conv_networks:
            shared = {
                "block_out_channels": block_out_channels,
                "layers_per_block": layers_per_block,
                "act_fn": act_fn,
                "norm_num_groups": norm_num_groups,
            }
            self.encoder = Encoder(
                in_channels, z_channels, down_block_types=down_block_types, double_z=False, **shared
            )
            self.quant_conv = nn.Conv2d(z_channels, latent_channels, 1)
            self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)
            self.decoder = Decoder(z_channels, out_channels, up_block_types=up_block_types, **shared)
        if patch_shortcut:
            self.patch_transform = path = PatchTransform(
                in_channels,
                self.downsample_factor,
                latent_channels,
                self.quantizer,
                hidden_channels,
                class_bases,
                class_components,
                class_candidates,
            )
            if patch_network_channels:
                size = (patch_network_channels, patch_network_blocks)
                self.patch_encoder = PatchNetwork(path.coefficients, *size, path.coefficients)
                self.patch_decoder = PatchNetwork(path.coefficients, *size, path.synthesis.out_channels)

        if refiner_channels:
            self.refiner = PixelRefiner(out_channels, self.downsample_factor, refiner_channels, refiner_blocks)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_sample_min_size = max(sample_size, 2 * self.downsample_factor)
        self.tile_overlap_factor = 0.25

    @classmethod
    def from_preset(cls, preset: str, **overrides) -> "AutoencoderPQ":
        """A fresh, untrained autoencoder in one of the paper's configurations, e.g. `f8-d128-s64-k512`."""
        return cls(**{**preset_config(preset), **overrides})

    # Public interface: images and standardized latents.

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderPQOutput | tuple:
        """Quantized, standardized latents of images.

        Args:
            x: images `(B, 3, H, W)` in [-1, 1].
            return_dict: whether to return an `AutoencoderPQOutput` or the tuple `(latent_dist, latents, indices)`.

        Raises:
            ValueError: if the sides of the image are not divisible by F; the message names the sizes that work.
        """
        check_image(x, self.config.in_channels, self.downsample_factor)
        if self.use_slicing and len(x) > 1:
            outputs = [self.quantizer(self._encode(image)) for image in x.split(1)]
            z_q, indices = (torch.cat([output[i] for output in outputs]) for i in (0, 1))
        else:
            z_q, indices, _ = self.quantizer(self._encode(x))
        latents = self.standardization.standardize(z_q)
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
        quantize: bool = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Images of standardized latents.

        Args:
            z: latents `(B, d, h, w)`, as `encode` or a diffusion model gives them.
            return_dict: whether to return a `DecoderOutput` or the tuple `(sample,)`.
            generator: accepted because pipelines pass it; decoding draws nothing.
            quantize: whether to snap the latents to the nearest codewords first.

        Returns:
            Images `(B, 3, F h, F w)`, nominally in [-1, 1], not clamped.
        """
        check_latents(z, self.config.latent_channels)
        parts = z.split(1) if self.use_slicing and len(z) > 1 else [z]
        images = []
        for part in parts:
            codes, indices = self.standardization.restore(part), None
            if quantize:
                codes, indices, _ = self.quantizer(codes)
            images.append(self._decode(codes.to(z.dtype), indices))
        sample = torch.cat(images) if len(images) > 1 else images[0]
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Snap standardized latents `(B, d, h, w)` to codewords: latents of the same shape and dtype, and indices."""
        check_latents(latents, self.config.latent_channels)
        z_q, indices, _ = self.quantizer(self.standardization.restore(latents))
        return self.standardization.standardize(z_q).to(latents.dtype), indices

    def latents_from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Standardized latents `(B, d, h, w)` of tokens `(B, S, h, w)`: exactly what `encode` gave with them, in fp32."""
        return self.standardization.standardize(self.quantizer.indices_to_latents(indices))

    def encode_to_indices(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, S, H/F, W/F)` of images `(B, 3, H, W)` in [-1, 1]."""
        return self.encode(x).indices

    @apply_forward_hook
    def decode_from_indices(self, indices: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Images of tokens `(B, S, h, w)`: exactly what `decode` makes of the latents they stand for."""
        check_indices(indices, self.quantizer.codebook_sizes)
        parts = indices.split(1) if self.use_slicing else [indices]
        codes = (self.quantizer.indices_to_latents(part).to(self.dtype) for part in parts)
        sample = torch.cat([self._decode(code, part.long()) for code, part in zip(codes, parts, strict=True)])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> AutoencoderPQForwardOutput | tuple:
        """Reconstruct images `(B, 3, H, W)` in [-1, 1], with the quantizer's loss and straight-through gradients.

        `sample_posterior` and `generator` are accepted as in `AutoencoderKL`; encoding is deterministic.
        """
        check_image(sample, self.config.in_channels, self.downsample_factor)
        output: QuantizerOutput = self.quantizer(self._encode(sample))
        reconstruction = self._decode(output.z_q, output.indices)
        if not return_dict:
            return reconstruction, output.loss, output.indices
        return AutoencoderPQForwardOutput(sample=reconstruction, commit_loss=output.loss, indices=output.indices)

    @property
    def bits_per_pixel(self) -> float:
        """Fixed rate of the tokens: bits per position / F^2."""
        return self.quantizer.bits_per_position / self.downsample_factor**2

    # Between images and codes, where slicing does not matter and tiling does.

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        """Image to latents before quantization."""
        tile, overlap = self._tile_cells()
        if not self.use_tiling or max(x.shape[2:]) <= tile * self.downsample_factor:
            return self._encode_tile(x)
        channels, halo = self.config.latent_channels, self._network_halo()
        return run_tiled(self._encode_tile, x, self.downsample_factor, tile, overlap, channels, 1, halo)

    def _encode_tile(self, x: torch.Tensor) -> torch.Tensor:
        x = self._normalize(x)
        z = None if self.encoder is None else self.quant_conv(self.encoder(x))
        if self.patch_transform is None:
            return z
        return self.patch_transform.encode(x, self.quantizer, z, self.patch_encoder)

    def _decode(self, z_q: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
        """Codes to image. The hidden coefficients, if any, travel beside the codes."""
        z_q = z_q.contiguous()  # one memory layout, hence the same pixels whichever way the codes came
        tile, overlap = self._tile_cells()
        hidden = None if self.patch_transform is None else self.patch_transform.hidden(z_q, indices)
        if hidden is not None:
            z_q = torch.cat([z_q, hidden], dim=1)
        if not self.use_tiling or max(z_q.shape[2:]) <= tile:
            return self._decode_tile(z_q)
        channels, halo = self.config.out_channels, self._network_halo()
        if self.refiner is not None:
            halo += -(-self.refiner.reach // self.downsample_factor)
        return run_tiled(self._decode_tile, z_q, 1, tile, overlap, channels, self.downsample_factor, halo)

    def _decode_tile(self, codes: torch.Tensor) -> torch.Tensor:
        image = None
        if self.patch_transform is not None:
            image = self.patch_transform.decode(codes, self.quantizer, self.patch_decoder)
        if self.decoder is not None:
            detail = self.decoder(self.post_quant_conv(codes[:, : self.config.latent_channels]))
            image = detail if image is None else image + detail
        if self.refiner is not None:
            image = image + self.refiner(image)
        return self._denormalize(image)

    def _tile_cells(self) -> tuple[int, int]:
        """Side of a tile and overlap of neighbors, in positions. The linear path alone needs no overlap."""
        tile = max(2, self.tile_sample_min_size // self.downsample_factor)
        overlap = 0 if self.encoder is None else min(tile - 1, max(1, int(tile * self.tile_overlap_factor)))
        return tile, overlap

    def _network_halo(self) -> int:
        """Neighbors to each side that a position sees through the patch networks, in positions."""
        return 0 if self.patch_encoder is None else self.config.patch_network_blocks * (KERNEL // 2)

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.config.image_mean is None:
            return x
        mean, std = self._image_statistics(x)
        return ((x + 1) / 2 - mean) / std

    def _denormalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.config.image_mean is None:
            return x
        mean, std = self._image_statistics(x)
        return (x * std + mean) * 2 - 1

    def _image_statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self.config.image_mean, self.config.image_std
        return tuple(torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1) for values in (mean, std))
