"""CLIP ViT-L/14 at 336 px (Radford et al., arXiv 2103.00020), the features of CMMD (arXiv 2401.09603).

As the paper's official code resizes: bicubic without antialiasing and without clamping. Google's CMMD crops the center and
resizes with antialiasing, so numbers of the two do not compare.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from pqdiff.metrics.features.base import FeatureExtractor, FeatureOutput
from pqdiff.network_weights import WeightsFile


class CLIPFeatures(FeatureExtractor):
    """768 features: the projected embedding of the image, divided by its norm. There are no logits.

    Args:
        weights: file of weights. Default: the file that the environment variable PQDIFF_CLIP names, else a download of 1.7
            GB from the Hub.
        sha256: beginning of the file's SHA-256, if it is another than the published one.

    Raises:
        FileNotFoundError, ValueError: see `WeightsFile.load_into`.
    """

    name = "clip"
    dim = 768
    num_classes = None
    local_dim = 768
    local_side = 336  # 24 x 24 positions
    weights = WeightsFile(
        title="the weights of CLIP ViT-L/14-336",
        variable="PQDIFF_CLIP",
        known={
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801": (
                "openai/clip-vit-large-patch14-336/pytorch_model.bin"
            ),
        },
        repo_id="openai/clip-vit-large-patch14-336",
        filename="pytorch_model.bin",
        revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    )
    preparation = "336 x 336, bicubic, no antialias, CLIP's mean and standard deviation"
    config = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        super().__init__()
        path = self.weights.find(weights)  # before a network of 300 M parameters is built
        self.network = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.config))
        self.digest = self.weights.load_into(self.network, path, sha256)
        self.register_buffer("mean", torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1))

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        side = self.network.config.image_size
        resized = F.interpolate(image / 255, size=(side, side), mode="bicubic", align_corners=False)
        return (resized - self.mean) / self.std

    def see(self, inputs: torch.Tensor) -> FeatureOutput:
        return FeatureOutput(F.normalize(self.network(pixel_values=inputs).image_embeds), None)

    def see_local(self, image: torch.Tensor) -> torch.Tensor:
        """Projected embeddings of the patches, as the codebook of VQGAN-LC has them."""
        model = self.network.vision_model
        states = model(pixel_values=self.prepare(image)).last_hidden_state[
            :, 1:
        ]  # (1, n, 1024), without the class token
        patches = self.network.visual_projection(model.post_layernorm(states))
        side = math.isqrt(patches.shape[1])
        return patches.transpose(1, 2).unflatten(2, (side, side))
