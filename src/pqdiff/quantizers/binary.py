"""What quantizers with one bit per channel share: tokens, soft snapping, entropies. Nothing of size 2^bits is stored.

Tokens are binary numbers whose first channel is the least significant bit, as digits are numbered everywhere in this
package; implementations with the first channel most significant number the same codes differently.
"""

import torch
import torch.nn.functional as F

from pqdiff.quantizers.base import Quantizer, check_weights

_MOST_BITS = 57  # of a token: what caches of tokens can pack
_MOST_ENTROPY_BITS = 12


class BinaryQuantizer(Quantizer):
    """Base of quantizers whose codes are +magnitude or -magnitude in every channel. A subclass implements `forward`.

    Args:
        latent_channels: number of latent channels d, each one bit.
        num_subspaces: number of tokens S, each for a contiguous group of d / S channels.
        entropy_weight: weight of the entropy loss: mean entropy of a position's code minus `diversity_weight` times the
            entropy of the mean code, in nats per token. The first makes codes certain, the second makes all of them used.
        diversity_weight: see there.
        commitment_weight: weight of mean((z - sg[codes])^2).
        temperature: of the probabilities p(code | z), proportional to exp(2 z code / temperature).
        entropy_bits: number of channels whose codes are counted jointly, in a table of 2^entropy_bits, for the entropy of
            the mean; groups of so many channels count as independent.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    fp32_tensors = ("frequencies",)

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int = 1,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.0,
        temperature: float = 0.01,
        entropy_bits: int = 1,
    ):
        super().__init__()
        if latent_channels < 1 or num_subspaces < 1 or latent_channels % num_subspaces:
            raise ValueError(
                f"latent_channels ({latent_channels}) must be divisible by num_subspaces ({num_subspaces}), both at least 1"
            )
        self.bits = latent_channels // num_subspaces  # of a token
        if self.bits > _MOST_BITS:
            raise ValueError(
                f"tokens of {self.bits} bits are too large, at most {_MOST_BITS} are possible: raise num_subspaces "
                f"({num_subspaces})"
            )
        weights = {"entropy_weight": entropy_weight, "diversity_weight": diversity_weight}
        check_weights(commitment_weight=commitment_weight, **weights)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature ({temperature}) must be a positive number")
        if not 1 <= entropy_bits <= _MOST_ENTROPY_BITS or self.bits % entropy_bits:
            raise ValueError(
                f"entropy_bits ({entropy_bits}) must be from 1 to {_MOST_ENTROPY_BITS} and divide the {self.bits} bits of "
                "a token"
            )
        self.in_channels = self.code_channels = self.latent_channels = latent_channels
        self.num_subspaces, self.temperature = num_subspaces, temperature
        self.entropy_weight, self.diversity_weight = entropy_weight, diversity_weight
        self.commitment_weight, self.entropy_bits = commitment_weight, entropy_bits
        self.register_buffer("frequencies", torch.full((latent_channels,), 0.5))  # of positive codes

    @property
    def magnitude(self) -> float:
        """Of the codes."""
        return 1.0

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (2**self.bits,) * self.num_subspaces

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z, self.in_channels, "z")
        positive = (z.detach() > 0).unflatten(1, (self.num_subspaces, self.bits))  # NaN counts as negative
        return (positive.long() << self._places(z.device)).sum(dim=2)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        positive = (indices.long()[:, :, None] >> self._places(indices.device)) & 1  # (B, S, bits, h, w)
        return (positive.flatten(1, 2) * 2 - 1).float() * self.magnitude

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        return self.encode(latents)

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Channel by channel: frequencies are known per channel, and channels count as independent."""
        self._check(latents, self.latent_channels, "latents")
        noise, prior = noise.float()[:, None, None], self.frequencies.logit()[:, None, None]
        odds = latents.float() / noise * (2 * self.magnitude / noise) + prior
        return (odds / 2).tanh() * self.magnitude

    @torch.no_grad()
    def set_frequencies(self, counts: list[torch.Tensor]) -> None:
        pairs = torch.stack(
            [count.double().view(-1, 2, 2**bit).sum((0, 2)) for count in counts for bit in range(self.bits)]
        )
        pairs = pairs + 0.5  # (d, 2): what was not seen is rare, not impossible
        self.frequencies.copy_(pairs[:, 1] / pairs.sum(dim=1))

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_subspaces={self.num_subspaces}, entropy_weight={self.entropy_weight}, "
            f"diversity_weight={self.diversity_weight}, commitment_weight={self.commitment_weight}, "
            f"temperature={self.temperature}, entropy_bits={self.entropy_bits}"
        )

    def _losses(self, z: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Entropy loss and commitment of z `(B, d, h, w)` fp32, weighted, and the entropies for the log."""
        certainty, diversity = entropies(z.flatten(2), self.magnitude, self.temperature, self.entropy_bits)
        certainty, diversity = certainty / self.num_subspaces, diversity / self.num_subspaces
        loss = self.entropy_weight * (certainty - self.diversity_weight * diversity)
        loss = loss + self.commitment_weight * (z - codes).square().mean()
        return loss, {"code_entropy": certainty.detach(), "mean_code_entropy": diversity.detach()}

    def _places(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.bits, device=device)[:, None, None]


def entropies(z: torch.Tensor, magnitude: float, temperature: float, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean entropy of the codes of all positions, and entropy of the mean code, in nats, of all channels together.

    A code of signs factorizes: p(c | z) is a product of sigmoids of 4 z magnitude / temperature. So the first is a sum over
    channels, without any table (Yu et al. 2023, arXiv 2310.05737, Eq. (5); Zhao et al. 2024, arXiv 2406.07548).

    Args:
        z: `(B, d, N)` fp32.
        magnitude: of the codes.
        temperature: see `BinaryQuantizer`.
        bits: channels of a group, whose mean code has a table of 2^bits entries; must divide d.
    """
    logits = z * (4 * magnitude / temperature)
    positive = logits.sigmoid()  # (B, d, N)
    each = (F.softplus(logits) - logits * positive).sum(dim=1).mean()
    rows = (
        torch.stack([1 - positive, positive]).transpose(1, 2).flatten(2).unflatten(1, (-1, bits))
    )  # (2, G, bits, B N)
    table = rows[:, :, 0].transpose(0, 1)  # (G, 2, B N)
    for bit in range(1, bits):
        table = (table[:, None] * rows[:, :, bit].transpose(0, 1)[:, :, None]).flatten(1, 2)  # (G, 2^(bit + 1), B N)
    mean = table.mean(dim=2)
    return each, -(mean * mean.clamp_min(1e-30).log()).sum()
