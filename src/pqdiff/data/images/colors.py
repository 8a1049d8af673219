"""Pixels of every kind as upright 8-bit sRGB: color profiles, 16 bits, transparency, orientation."""

import contextlib
import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 2**20  # pixels converted at once, so that a large image takes little more than its own memory
_SRGB_GAMMA = 1 / 2.2  # what PNGs in sRGB say


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as an upright 8-bit RGB image in sRGB, with transparency laid over white.

    Colors are converted as the embedded ICC profile or the gamma of a PNG says. A profile that is damaged, or of other
    colors than the image's, is ignored; without a profile, colors are those of sRGB. So are colors that only cICP (PNG)
    or nclx (AVIF) describe, which Pillow does not tell.

    Raises:
        ValueError: for floating-point images with values outside [0, 1] or NaN, and for integers beyond 16 bits.
    """
    return _by_bands(_rgb_over_white, "RGB", _upright(image))


def join_bytes(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """An upright image with 16 bits per color, rounded to 8 bits.

    Args:
        upper: the upper 8 bits of the pixels, as Pillow reads them.
        lower: the lower 8 bits, as `open_low_bytes` reads them.
    """
    transparent = upper.info.get("transparency")
    mode = "RGBA" if transparent else upper.mode
    upper, lower = _upright(upper), _upright(lower)
    joined = _by_bands(lambda *bands: _rounded(*bands, transparent), mode, upper, lower)
    joined.info = {key: value for key, value in upper.info.items() if key != "transparency"}
    return joined


def srgb_tag(suffix: str) -> dict:
    """Arguments of `Image.save` by which a file of this kind says that its colors are sRGB; the same at any time."""
    if suffix.lower() == ".png":
        chunk = PngImagePlugin.PngInfo()
        chunk.add(b"sRGB", b"\0")
        return {"pnginfo": chunk}
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # when it was made
    return {"icc_profile": bytes(profile)}


def _by_bands(convert: Callable, mode: str, *images: Image.Image) -> Image.Image:
    """A new image whose parts are made from those of other images."""
    result = Image.new(mode, images[0].size)
    rows = max(1, _BAND // result.width)
    for top in range(0, result.height, rows):
        box = (0, top, result.width, min(top + rows, result.height))
        result.paste(convert(*(image.crop(box) for image in images)), box)
    return result


def _rounded(upper: Image.Image, lower: Image.Image, transparent: tuple | None) -> Image.Image:
    high, low = (np.asarray(image).astype(np.uint32) for image in (upper, lower))
    if upper.mode != lower.mode:  # gray with alpha
        high, low = low[..., [0, 0, 0, 2]], low[..., [1, 1, 1, 3]]
    values = high * 256 + low
    eight = ((values * 255 + 32767) // 65535).astype(np.uint8)
    if not transparent:
        return Image.fromarray(eight, upper.mode)
    alpha = np.where((values == transparent).all(-1, keepdims=True), 0, 255).astype(np.uint8)
    return Image.fromarray(np.concatenate([eight, alpha], -1), "RGBA")


def _rgb_over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _gray_in_eight_bits(image)
    alpha = None
    if image.has_transparency_data:
        image = _with_info(image.convert("LA" if image.mode in ("1", "L", "La", "LA") else "RGBA"), image.info)
        alpha = image.getchannel("A")
    image = _srgb(image)
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _gray_in_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray, which has mode I;16, I;16B or I, or fractions, as 8-bit gray, with alpha if a value is transparent."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError("floating-point values must be finite and in [0, 1]")
        return Image.fromarray(np.rint(np.asarray(image) * 255).astype(np.uint8))
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer values ({values.min():.0f} to {values.max():.0f}) are beyond 16 bits")
    gray = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return _with_info(gray, {key: value for key, value in image.info.items() if key != "transparency"})


def _srgb(image: Image.Image) -> Image.Image:
    """Colors without alpha as RGB in sRGB."""
    info = image.info
    kind = "L" if image.mode in ("1", "L", "La", "LA") else "CMYK" if image.mode == "CMYK" else "RGB"
    image = image.convert(kind)
    profile, gamma = info.get("icc_profile"), info.get("gamma")
    if isinstance(profile, bytes) and (transform := _transform(profile, kind)):
        return ImageCms.applyTransform(image, transform)
    image = image.convert("RGB")
    if profile or not gamma or "srgb" in info or abs(gamma - _SRGB_GAMMA) < 0.005:
        return image
    linear = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return image.point(np.rint(encoded * 255).astype(int).tolist() * 3)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colors to sRGB; None for sRGB itself, and for a profile that is damaged or of another mode."""
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        lattice = np.arange(0, 256, 15, np.uint8)
        if mode == "RGB":
            lattice = np.stack(np.meshgrid(lattice, lattice, lattice), -1).reshape(len(lattice), -1, 3)
        probe = Image.fromarray(lattice if mode == "RGB" else lattice[None])
        result = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if np.abs(result - np.asarray(probe.convert("RGB"))).max() > 1:
            return transform
    return None


def _with_info(image: Image.Image, info: dict) -> Image.Image:
    image.info = dict(info)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF orientation asks.

    Pillow's `exif_transpose` is not used: it also rewrites all other tags, and fails if one of them is damaged.
    """
    turn = _TURNS.get(orientation(image.getexif))
    if turn is None:
        return image
    image = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # else it would be turned again later
        image.info.pop(key, None)
    return image


def orientation(getexif: Callable[[], Image.Exif]) -> int | None:
    """The EXIF orientation; None if there is none, or the EXIF is damaged."""
    try:
        return getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises errors of every kind
        return None
