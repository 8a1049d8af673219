"""Whatever gives images back: the same as calling it by hand, and no batch changes a bit."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from pqdiff.data.images.reading import normalize, to_pixels
from pqdiff.metrics.reconstructors import AutoencoderReconstructor, build_reconstructor
from tests import autoencoders


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def kl():
    return AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4)  # fmt: skip


def tiny():
    return AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                           num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip


def dc():
    return AutoencoderDC(
        latent_channels=4, encoder_block_types=("ResBlock",) * 2, decoder_block_types=("ResBlock",) * 2,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()),
    )  # fmt: skip


@pytest.mark.parametrize("build", [kl, tiny, dc])
def test_any_autoencoder_of_diffusers_is_loaded_and_used_as_by_hand(build, pixels, tmp_path):
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(tmp_path)
    reconstructor = build_reconstructor(str(tmp_path))
    assert reconstructor.codebook_sizes is None
    assert reconstructor.factor == 2
    result = reconstructor(pixels)
    assert (result.indices, result.num_bytes) == (None, None)
    with torch.no_grad():
        encoded = model.encode(normalize(pixels[1:2]))
        latents = encoded.latent_dist.mean if build is kl else encoded[0]
        assert torch.equal(result.pixels[1:2], to_pixels(model.decode(latents).sample))


def test_a_tokenizer_gives_tokens_and_what_it_decodes_from_them(pixels):
    model = autoencoders.build("networks")
    reconstructor = AutoencoderReconstructor(model)
    result = reconstructor(pixels)
    assert torch.equal(result.indices, torch.cat([model.encode_to_indices(normalize(p)) for p in pixels.split(1)]))
    alone = [reconstructor(image) for image in pixels.split(1)]
    assert torch.equal(result.pixels, torch.cat([part.pixels for part in alone]))
    rounded = (reconstructor(pixels, rounded=False).pixels * 255).round().byte()
    assert torch.equal(rounded, result.pixels)


def test_a_codec_counts_its_files_and_rounds_itself(pixels):
    reconstructor = build_reconstructor("jpeg:80")
    result = reconstructor(pixels)
    assert result.num_bytes == sum(reconstructor(image).num_bytes for image in pixels.split(1))
    assert result.indices is None
    assert torch.equal((reconstructor(pixels, rounded=False).pixels * 255).round().byte(), result.pixels)
    assert {"kind", "pillow", "library"} == set(reconstructor.describe())


def test_what_is_neither_model_nor_codec_is_refused():
    with pytest.raises(ValueError, match="jpeg75"):
        build_reconstructor("jpeg75")
