"""SSIMULACRA2, version 2.1 (Jon Sneyers, Cloudinary 2023): errors of structure and edges, in color, at six scales.

The constants are those of https://github.com/cloudinary/ssimulacra2. The steps are those of the PyPI package `ssimulacra2`
0.3.0: its window has 11 weights and meets zeros left and right of the image, and the mirrored image above and below it,
where the original has a recursive filter and zeros all around. Errors are computed as differences, not as one minus a
similarity, so that float32 is enough.
"""

import math

import torch
import torch.nn.functional as F

from pqdiff.metrics.filters import blur, gaussian
from pqdiff.metrics.image_mean import ImageMean, per_image

_SCALES = 6
EXPONENT = 0.6276336467831387
WINDOW = gaussian(11, 1.5)
MARGIN = 5
_STRIP = 2**14  # pixels that are compared at once, so that all there is about them stays in the processor's cache
LEAST_SIDE = 8
C2 = 0.0009
BIAS = 0.0037930732552754493
_CONES = (  # linear RGB -> responses of the cones of the eye
    (0.3, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
_XYB = ((7.0, -7.0, 0.0), (0.5, 0.5, 0.0), (-0.5, -0.5, 1.0))
_OFFSETS = (0.42, 0.01, 0.55)
# A row per channel X, Y, B and scale: mean of the error, of artifacts, of lost detail, then the 4-norms of the three.
_WEIGHTS = """
0 0.000737660670741 0 0 0.000779348168287 0
0 0.000437115573011 0 1.10417264267 0.000662848341293 0.000152316327837
0 0.00164064374566 0 1.84224555205 11.4411726038 0
0.000798910943602 0.000176816438079 0 1.87875949795 10.9490699061 0
0.000728934699151 0.967793708063 0 0.000140034242854 0.998176697785 0.000319497559344
0.000455099211379 0 0 0.00136487661632 0 0
0 0 0 7.46689032808 0 17.4458339841
0.000623560163404 0 0 6.68367814618 0.000377244079796 1.02788993777
225.205153008 0 0 19.2132381861 0.00114015245866 0.00123775563551
176.393175985 0 0 24.4330099987 0.285208026121 0.000448543692383
0 0 0 34.7790634448 44.8356253289 0
0 0 0 0 0 0
0 0.000868055657329 0 0 0 0
0 0.000531319187436 0 0.000165338141614 0 0
0 0 0 0.000417917180325 0.00172908282347 0
0.00208270058466 0 0 8.826982765 23.19243344 0
95.1080498811 0.98639780344 0.983438279247 0.00122864050483 171.26672559 0.980785887244
0 0 0 0.000513006458899 0 0.000108540578584
"""


def ssimulacra2(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIMULACRA2 of each image: 100 for equal ones, 90 visually lossless, 70 high, 50 medium, 30 low quality, or below 0.

    Images with a side below 225 have fewer than six scales. Their numbers are those that the reference gives, whose weights
    then belong to other scales; they cannot be compared with those of larger images.

    Args:
        preds: reconstructions `(B, 3, H, W)` in sRGB, uint8 or floating point in [0, 1], with sides of at least 8.
        target: their images.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_ssimulacra2, preds, target, "SSIMULACRA2", LEAST_SIDE)


class SSIMULACRA2(ImageMean):
    """Mean of the SSIMULACRA2 of each image, at most 100. Higher is better. See `ssimulacra2`."""

    least_side = LEAST_SIDE
    values = staticmethod(ssimulacra2)


def _ssimulacra2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    images = _linear(x), _linear(y)  # always two calls: in one, equal images may differ in the last digit
    eye = Eye(x)
    error = torch.zeros((), dtype=torch.float64, device=x.device)
    for scale, weights in enumerate(weights_of_scales(min(x.shape[1:]))):
        if scale:
            images = [halve(image) for image in images]
        error += _error(*(_seen(image, eye) for image in images), weights)
    return 100 - 10 * distance_of(error).clamp(min=0) ** EXPONENT


class Eye:
    """The constants of X, Y and B - Y as tensors like the given one.

    Cube roots l, m, s of the cones' responses, each without that of the bias, become 14 X, Y, B - Y: X = (l - m) / 2 and
    Y = (l + m) / 2.
    """

    def __init__(self, like: torch.Tensor):
        self.cones, self.bias, self.xyb = like.new_tensor(_CONES), like.new_tensor(BIAS), like.new_tensor(_XYB)
        self.offsets = like.new_tensor(_OFFSETS)[:, None] - self.xyb.sum(1, keepdim=True) * BIAS ** (1 / 3)


def weights_of_scales(side: int) -> list[torch.Tensor]:
    """A tensor (channels, norms, kinds of error), float64, for each scale of images with this shorter side."""
    sides = [side]
    while len(sides) < _SCALES and sides[-1] > 2 * (LEAST_SIDE - 1):
        sides.append((sides[-1] + 1) // 2)
    weights = torch.tensor([float(weight) for weight in _WEIGHTS.split()][: 18 * len(sides)], dtype=torch.float64)
    return list(weights.view(3, len(sides), 2, 3).unbind(dim=1))


def distance_of(error: torch.Tensor) -> torch.Tensor:
    """What the weighted sum of all errors stands for, on the scale from which the score comes."""
    error = error * 0.9562382616834844
    return 2.326765642916932 * error - 0.020884521182843837 * error**2 + 6.248496625763138e-05 * error**3


def _linear(srgb: torch.Tensor) -> torch.Tensor:
    """Linear RGB of sRGB: a line up to 0.04045, and from there a power, which logarithms give in half the time."""
    power = srgb.clamp(min=0.04045).add_(0.055).log_().mul_(2.4).add_(-2.4 * math.log(1.055)).exp_()
    return power.add_(srgb.clamp(max=0.04045).sub_(0.04045), alpha=1 / 12.92)


def halve(image: torch.Tensor) -> torch.Tensor:
    """Means of blocks of 2 x 2 pixels, or of what there is of them at an odd edge."""
    image = F.pad(image, (0, image.shape[2] % 2, 0, image.shape[1] % 2), mode="replicate")
    rows = image[:, ::2] + image[:, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _seen(linear: torch.Tensor, eye: Eye) -> torch.Tensor:
    """X, Y and B - Y of an image (3, H, W) in linear RGB, mirrored above and below, between zeros at the sides.

    All in the range that errors are computed in: (3, H + 2 MARGIN, W + 2 MARGIN).
    """
    roots = torch.addmm(eye.bias, eye.cones, linear.flatten(1)).log_().div_(3).exp_()
    planes = torch.addmm(eye.offsets, eye.xyb, roots).view_as(linear)
    tall = torch.cat([planes[:, :MARGIN].flip(1), planes, planes[:, -MARGIN:].flip(1)], dim=1)
    return F.pad(tall, (MARGIN, MARGIN))


def _error(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum, float64, of all errors between what is seen of a reconstruction and of its image."""
    height, width = (side - 2 * MARGIN for side in x.shape[1:])
    weighty = weights[:, :, 0].any(1).nonzero()[:, 0].tolist()
    channels = slice(weighty[0], weighty[-1] + 1)  # only there errors of structure have a weight
    step = max(1, _STRIP // width)
    strips = [slice(top, top + step + 2 * MARGIN) for top in range(0, height, step)]
    norms = sum(_sums(x[:, strip], y[:, strip], channels) for strip in strips) / (height * width)
    norms[1] = norms[1] ** 0.25
    structure, artifacts, lost = weights[channels, :, 0], weights[:, :, 1], weights[:, :, 2]
    return (norms * torch.cat([structure, artifacts, lost]).T.to(norms)).sum()


def _sums(x: torch.Tensor, y: torch.Tensor, channels: slice) -> torch.Tensor:
    """Sums of the errors inside the margins and of their 4th powers, float64: (2, channels + 3 + 3)."""
    own_x, own_y = x[channels], y[channels]
    count = len(own_x)
    planes = torch.cat([x, y, own_x.square().add_(own_y.square()), (own_x - own_y).square_()])
    mean_x, mean_y, squares, difference = blur(planes, WINDOW).split([3, 3, count, count])
    errors = torch.empty_like(planes[: count + 6, : mean_x.shape[1], : mean_x.shape[2]])
    bias = (mean_x[channels] - mean_y[channels]).square_()
    # 1 - (1 - bias) (2 covariance + C2) / (both variances + C2), with 2 covariance = both variances - that of x - y
    variances = squares.sub_(mean_x[channels].square()).sub_(mean_y[channels].square()).add_(C2)
    torch.add(difference.sub_(bias).div_(variances).mul_(1 - bias), bias, out=errors[:count])
    inside = slice(MARGIN, -MARGIN)
    edge_x = mean_x.sub_(x[:, inside, inside]).abs_()
    edge_y = mean_y.sub_(y[:, inside, inside]).abs_()
    artifacts, lost = errors[count:].split(3)
    torch.div(edge_x.sub_(edge_y), edge_y.add_(1), out=artifacts)
    torch.neg(artifacts, out=lost)
    means = errors.clamp_(min=0).sum((1, 2))
    return torch.stack([means, errors.square_().square_().sum((1, 2))]).double()
