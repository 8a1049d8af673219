"""The formula of SSIMULACRA2, version 2.1 (Jon Sneyers, Cloudinary 2023), for the metric and for the loss.

The constants are those of https://github.com/cloudinary/ssimulacra2. The window has the 11 weights of the PyPI package
`ssimulacra2` 0.3.0, where the original has a recursive filter.
"""

import torch
import torch.nn.functional as F

WINDOW = 11, 1.5  # size and standard deviation
_SCALES = 6
EXPONENT = 0.6276336467831387
MARGIN = 5
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


def halve(image: torch.Tensor) -> torch.Tensor:
    """Means of blocks of 2 x 2 pixels, or of what there is of them at an odd edge."""
    image = F.pad(image, (0, image.shape[2] % 2, 0, image.shape[1] % 2), mode="replicate")
    rows = image[:, ::2] + image[:, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def framed(planes: torch.Tensor) -> torch.Tensor:
    """Planes (3, H, W) with a margin: mirrored above and below, zeros at the sides."""
    tall = torch.cat([planes[:, :MARGIN].flip(1), planes, planes[:, -MARGIN:].flip(1)], dim=1)
    return F.pad(tall, (MARGIN, MARGIN))
