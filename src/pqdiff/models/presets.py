"""The paper's configurations by name, any other by the same scheme (`f8-d32-s16-k256`), and their closed forms.

F16 exists twice because the paper contradicts itself: section 4.4 and the tables have d = 128, appendix A.1 has
d = 256. The published sources give no network for F32; its levels extend those of F16.
"""

import re

from pqdiff.suggestions import did_you_mean

# F, d, S, K, levels of the networks, hidden channels of the closed form.
_PRESETS = {
    "f8-d128-s64-k512": (8, 128, 64, 512, (128, 256, 256, 512), 0),
    "f16-d128-s64-k128": (16, 128, 64, 128, (128, 128, 256, 256, 512), 64),
    "f16-d256-s128-k128": (16, 256, 128, 128, (128, 128, 256, 256, 512), 128),
    "f32-d256-s64-k256": (32, 256, 64, 256, (128, 128, 256, 256, 512, 512), 0),
}
# Where patches have classes: hidden channels, principal components, and classes that the encoder tries.
_WITH_CLASSES = {
    "f8-d128-s64-k512": (64, 192, 8),
    "f16-d128-s64-k128": (128, 512, 8),
    "f16-d256-s128-k128": (128, 576, 8),
    "f32-d256-s64-k256": (128, 632, 32),
    # Not of the paper: as many bits per pixel as F16-S64 and F32, from patches of half the side.
    "f8-d32-s16-k128": (32, 64, 32),
    "f16-d32-s16-k256": (64, 96, 32),
}
PRESETS = tuple(_PRESETS)
_SCHEME = re.compile(r"f(\d+)-d(\d+)-s(\d+)-k(\d+)")
_LEVELS = {
    4: (128, 256, 512),
    8: (128, 256, 256, 512),
    16: (128, 128, 256, 256, 512),
    32: (128, 128, 256, 256, 512, 512),
}


def preset_config(name: str) -> dict:
    """Constructor arguments of `AutoencoderPQ` with the paper's networks.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    _, latent_channels, num_subspaces, codebook_size, levels, _ = _look_up(name)
    return {
        "transform_type": "conv",
        "transform_config": {"block_out_channels": levels},
        "quantizer_type": "product",
        "quantizer_config": {"num_subspaces": num_subspaces, "codebook_size": codebook_size},
        "latent_channels": latent_channels,
        "preset": name,
    }


def preset_factor(name: str) -> int:
    """Downsampling factor F of a preset. Raises ValueError for an unknown name."""
    return _look_up(name)[0]


def closed_form_config(
    name: str,
    hidden_channels: int | None = None,
    class_bases: int = 0,
    visibility: float = 0.0,
    overlap: int = 0,
) -> dict:
    """Constructor arguments of `AutoencoderPQ` with a linear transform of patches.

    Args:
        name: preset.
        hidden_channels: coefficients per patch that codewords stand for beyond the latent channels; None for what suits
            the preset best.
        class_bases: bases of the classes of patches; 0 for a plain product quantizer.
        visibility: power from 0 to 1 of how much errors are seen, by which the fit weighs them; 0 for squared error.
        overlap: pixels across each border between patches that are filtered, even, at most F; 0 for none.

    Raises:
        ValueError: for an unknown name, and for numbers that do not fit it.
    """
    factor, latent_channels, num_subspaces, codebook_size, _, hidden = _look_up(name)
    if not 0 <= visibility <= 1:
        raise ValueError(f"visibility ({visibility}) must be from 0, for squared error, to 1")
    if not 0 <= overlap <= factor or overlap % 2:
        raise ValueError(f"overlap ({overlap}) must be even, from 0 to F = {factor} of {name}")
    components, candidates, most = 0, 8, 3 * factor**2 - latent_channels
    if class_bases:
        general = (0, min(3 * factor**2, 2 * latent_channels), min(8, codebook_size))
        hidden, components, candidates = _WITH_CLASSES.get(name, general)
        if class_bases < 0 or codebook_size % class_bases or num_subspaces < 2:
            raise ValueError(
                f"class_bases ({class_bases}) must be 0 or divide K = {codebook_size}, with S = {num_subspaces} at least 2"
            )
    if hidden_channels is not None:
        hidden = hidden_channels
        if hidden % num_subspaces or not 0 <= hidden <= most:
            raise ValueError(
                f"hidden_channels ({hidden}) must be a multiple of num_subspaces ({num_subspaces}), "
                f"from 0 to {most} for {name}"
            )
        components = max(components, latent_channels + hidden) if class_bases else 0
    if visibility:  # what is not seen fills no components
        components = min(components, 3 * (latent_channels + hidden) // 2)
    transform_config = {"patch_size": factor, "tied": visibility == 0}  # weights make the way back another one
    if overlap:
        transform_config["overlap"] = overlap
    quantizer_config = {"num_subspaces": num_subspaces, "codebook_size": codebook_size, "hidden_channels": hidden}
    if class_bases:
        quantizer_config |= {"components": components, "bases": class_bases, "candidates": candidates}
    return {
        "transform_type": "patch",
        "transform_config": transform_config,
        "quantizer_type": "classified_product" if class_bases else "product",
        "quantizer_config": quantizer_config,
        "latent_channels": latent_channels,
        "preset": name,
    }


def _look_up(name: str) -> tuple:
    if name in _PRESETS:
        return _PRESETS[name]
    if match := _SCHEME.fullmatch(name):
        factor, latent_channels, num_subspaces, codebook_size = map(int, match.groups())
        if factor not in _LEVELS:
            raise ValueError(f"preset ({name!r}): F must be one of {', '.join(map(str, _LEVELS))}")
        if not 1 <= latent_channels <= 3 * factor**2 or num_subspaces < 1 or latent_channels % num_subspaces:
            raise ValueError(
                f"preset ({name!r}): d must be from 1 to 3 F^2 = {3 * factor**2} and divisible by S = {num_subspaces}"
            )
        return factor, latent_channels, num_subspaces, codebook_size, _LEVELS[factor], 0
    raise ValueError(f"preset ({name!r}) is unknown: {did_you_mean(name, PRESETS)} Or write e.g. f8-d32-s16-k256.")
