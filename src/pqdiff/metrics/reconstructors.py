"""Whatever gives images back, behind one call: our tokenizers, autoencoders of diffusers, and codecs."""

from typing import NamedTuple

import torch
from diffusers import ModelMixin

from pqdiff.data.images.reading import normalize, to_image, to_pixels, to_tensor
from pqdiff.metrics.codecs import Codec
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.checks import check_finite
from pqdiff.models.fingerprint import fingerprint
from pqdiff.models.loading import downsample_factor, load_reconstructor


class Reconstruction(NamedTuple):
    """Reconstructions of a batch.

    Attributes:
        pixels: `(B, 3, H, W)` on the CPU: uint8, or fp32 in [0, 1] where they are not rounded.
        indices: tokens, integers `(B, G, h, w)` on the CPU, or None if there are none.
        num_bytes: size of the files of a codec, or None.
        clean_indices: the tokens of the image itself, where `indices` are others, or None.
    """

    pixels: torch.Tensor
    indices: torch.Tensor | None = None
    num_bytes: int | None = None
    clean_indices: torch.Tensor | None = None


class CodecReconstructor:
    """Compresses and decompresses.

    Attributes:
        name: such as `jpeg:75`.
        factor: by which sides must be divisible.
        codebook_sizes: None, there are no tokens.
    """

    factor = 1
    codebook_sizes = None

    def __init__(self, codec: Codec):
        self.codec, self.name = codec, str(codec)

    def describe(self) -> dict:
        """What a protocol says about it."""
        from PIL import __version__, features

        kind = self.codec.name.removesuffix("444")
        version = features.version("libjpeg_turbo" if kind == "jpeg" else kind)
        return {"kind": "codec", "pillow": __version__, "library": version}

    def __call__(self, pixels: torch.Tensor, rounded: bool = True) -> Reconstruction:
        """Reconstruct images, uint8 `(B, 3, H, W)`. A codec rounds to 8 bits itself."""
        files = [self.codec.compress(to_image(image)) for image in pixels]
        results = torch.stack([to_tensor(self.codec.decompress(file)) for file in files])
        return Reconstruction(results if rounded else results / 255, num_bytes=sum(map(len, files)))


class AutoencoderReconstructor:
    """Encodes and decodes, each image on its own, by the mean of the posterior if there is one; tokens if there are any.

    Attributes: see `CodecReconstructor`.
    """

    def __init__(self, model: ModelMixin, name: str = ""):
        self.model, self.name = model.eval(), name
        self.factor = downsample_factor(model)
        self.codebook_sizes = model.quantizer.codebook_sizes if isinstance(model, AutoencoderPQ) else None

    def describe(self) -> dict:
        """What a protocol says about it."""
        kind = "tokenizer" if self.codebook_sizes else type(self.model).__name__
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"kind": kind, "dtype": dtype, "fingerprint": fingerprint(self.model)}

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, rounded: bool = True) -> Reconstruction:
        """Reconstruct images, uint8 `(B, 3, H, W)` with sides divisible by `factor`; to 8 bits if `rounded`.

        Raises:
            ValueError: if the model gives values that are not finite.
        """
        # Alone, so that no batch size changes a bit.
        results, *tokens = zip(*(self._one(image) for image in pixels.split(1)), strict=True)
        make = to_pixels if rounded else lambda result: (result.float() / 2 + 0.5).clamp(0, 1)
        indices, clean = (None if of_each[0] is None else torch.cat(of_each).cpu() for of_each in tokens)
        images = torch.cat([make(check_finite(result)).cpu() for result in results])
        return Reconstruction(images, indices, clean_indices=clean)

    def _one(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Of one image: the decoded one in [-1, 1], `indices` and `clean_indices`."""
        model = self.model
        image = normalize(pixels).to(model.device, model.dtype)
        if self.codebook_sizes:
            tokens = model.encode_to_indices(image)
            return model.decode_from_indices(tokens).sample, tokens, None
        encoded = model.encode(image)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        return model.decode(latents).sample, None, None


def build_reconstructor(source: str, **kwargs) -> CodecReconstructor | AutoencoderReconstructor:
    """A codec from its name (`jpeg:75`, `avif@0.5bpp`), or an autoencoder by shipped name, folder or Hub id.

    Args:
        source: what to build.
        kwargs: arguments of `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: in one line that says what is wrong with the source.
    """
    codec = Codec.parse(source)
    return (
        CodecReconstructor(codec) if codec else AutoencoderReconstructor(load_reconstructor(source, **kwargs), source)
    )
