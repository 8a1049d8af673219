"""Tables 1, 2 and 5 of the paper (Zavadski, Tatsch, Rother 2026), and today's anchors: what others report, never ours.

Bits per pixel are not in the paper: they follow from tokens per position, codebook size and downsampling factor F.
"""

from math import log2


def bits(tokens: int, codebook_size: float, factor: int) -> float:
    """Bits per pixel of `tokens` tokens of `codebook_size` values on every F x F pixels."""
    return tokens * log2(codebook_size) / factor**2


# ImageNet validation, 50,000 images at 256 px: (name, bits per pixel or None without tokens, PSNR, rFID, CMMD, LPIPS)
TABLE_1 = (
    ("PQGAN F8, d 128, S 64, K 512", bits(64, 512, 8), 37.4, 0.036, 0.011, 0.0024),
    ("PQGAN F16, d 128, S 64, K 128", bits(64, 128, 16), 28.3, 0.41, 0.094, 0.0304),
    ("PQGAN F32, d 256, S 64, K 256", bits(64, 256, 32), 24.6, 0.90, 0.164, 0.0621),
    ("SD2.1 VAE F8", None, 25.3, 0.75, 0.133, 0.0610),
    ("SDXL VAE F8", None, 25.3, 0.74, 0.148, 0.0573),
    ("LDM KL F4", None, 28.1, 0.27, 0.080, 0.0282),
    ("LDM KL F8", None, 24.2, 0.94, 0.168, 0.0651),
    ("LDM KL F16", None, 24.0, 0.87, 0.198, 0.0665),
    ("VQGAN F16, K 16384", bits(1, 16384, 16), 19.7, 4.98, 0.422, 0.1633),
    ("VQGAN F16, K 1024", bits(1, 1024, 16), 19.4, 7.94, 0.862, 0.1834),
    ("LDM VQ F16, K 16384", bits(1, 16384, 16), 20.6, 5.51, 0.621, 0.1462),
    ("LDM VQ F8, K 16384", bits(1, 16384, 8), 23.1, 1.29, 0.258, 0.0815),
    ("VQGAN-LC F16, K 100000", bits(1, 100_000, 16), 23.8, 2.62, 0.240, 0.1280),
    ("VQGAN-LC F8, K 100000", bits(1, 100_000, 8), 27.0, 1.29, 0.080, 0.0712),
    ("MoVQ F16, 4 x 1024", bits(4, 1024, 16), 22.4, 1.12, None, 0.1132),
    ("RQ-VAE F32, 8 x 16384", bits(8, 16384, 32), None, 2.69, None, None),
    ("ViT-VQGAN F8, K 8192", bits(1, 8192, 8), None, 1.28, None, None),
)
# The same columns. FFHQ and LSUN at 256 px.
TABLE_2 = {
    "FFHQ": (
        ("PQGAN F16", bits(64, 128, 16), 33.3, 0.54, 0.190, 0.0138),
        ("PQGAN F8", bits(64, 512, 8), 42.1, 0.13, 0.021, 0.0012),
        ("VQGAN-LC", None, 29.6, 3.35, 0.094, 0.0390),
        ("SD2.1 VAE", None, 29.9, 1.57, 0.086, 0.0284),
        ("SDXL VAE", None, 30.0, 1.77, 0.122, 0.0284),
    ),
    "LSUN": (
        ("PQGAN F16", bits(64, 128, 16), 27.9, 4.77, 0.353, 0.0315),
        ("PQGAN F8", bits(64, 512, 8), 38.3, 0.62, 0.189, 0.0022),
        ("VQGAN-LC", None, 24.7, 7.01, 0.261, 0.0711),
        ("SD2.1 VAE", None, 25.0, 5.51, 0.321, 0.0629),
        ("SDXL VAE", None, 24.9, 6.00, 0.317, 0.0566),
    ),
}
# An LDM of 400 M parameters, ImageNet at 256 px, 2 M steps of batch 64: (latents, FID of 5,000 images, rFID)
TABLE_5 = (("SD VAE F8", 27.21, 0.75), ("PQGAN F8", 22.66, 0.036), ("PQGAN F16", 21.08, 0.41))
# Later tokenizers by their own protocols, ImageNet at 256 px: (name, bits per pixel, PSNR, rFID, source)
ANCHORS = (
    ("MGVQ-G8 F8", 1.375, 29.96, 0.27, "MGVQ, mean of images"),
    ("MGVQ-G8 F16", 0.344, 24.70, 0.49, "MGVQ, mean of images"),
    ("WeTok F8", 1.0, None, 0.12, "WeTok"),
    ("BitDance F32", 0.25, 25.29, None, "BitDance"),
    ("BitDance F32", 0.125, 23.26, None, "BitDance"),
    ("TokenBridge F16", 0.375, None, 0.53, "TokenBridge"),
    ("XQ-GAN PQ-2 F16", 0.11, None, 0.64, "XQ-GAN"),
    ("Open-MAGVIT2 F16", 0.07, 21.90, 1.17, "Open-MAGVIT2"),
    ("FLUX.1 VAE F8, 16 channels", None, 32.87, 0.165, "MGVQ"),
)
