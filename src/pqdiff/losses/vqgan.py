"""The training loss of VQGAN (Esser et al., arXiv 2012.09841) as PQGAN uses it.

Differences from the reference implementation: the discriminator may start to train before it influences the autoencoder,
the adversarial part is not computed before it is used, and the adaptive weight is that of the whole batch over all
processes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pqdiff.losses.adaptive import frozen, gradient_at, last_layer_norms, with_gradient
from pqdiff.losses.perceptual import PerceptualLoss
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.suggestions import did_you_mean

DISCRIMINATOR_LOSSES = ("hinge", "vanilla")
# Upper limit and denominator's constant of the adaptive weight, as in all published configurations.
ADAPTIVE_MAX, ADAPTIVE_EPSILON = 1e4, 1e-4


class VQGANLoss:
    """Losses of the autoencoder and of the discriminator, from one forward pass of the autoencoder.

        nll = l1_weight * mean |x - x_hat| + l2_weight * mean (x - x_hat)^2 + perceptual_weight * mean P(x, x_hat)
              + ssimulacra2_weight * mean (100 - SSIMULACRA2(x, x_hat)) / 100
        generator:      nll + disc_weight * w * f * (-mean D(x_hat)) + quantizer_weight * quantizer_loss
        discriminator:  f_D * (mean max(0, 1 - D(x)) + mean max(0, 1 + D(x_hat))) / 2      ("hinge")
                        f_D * (mean softplus(-D(x)) + mean softplus(D(x_hat))) / 2         ("vanilla")
        w = min(|d nll / d last_layer| / (|d -mean D / d last_layer| + 1e-4), 1e4)
        f = 1 from step disc_start on, before that 0
        f_D = 1 from step disc_start - disc_pretrain_steps on, before that 0

    P is LPIPS or another perceptual distance. This is not a module and has no weights of its own. The discriminator may be
    wrapped for several processes or not, and may be replaced between steps (`loss.network = ...`). It keeps separate batch
    statistics for images and reconstructions.

    A step is one batch, in which both optimizers may step. PQGAN's official configurations count the steps of both
    optimizers: their 1,200,005 steps are 600,000 batches. With their `disc_start` of 1 the discriminator trains from the
    first batch on and influences the autoencoder from the second on: here `disc_start=1, disc_pretrain_steps=1`.

    Args:
        network: discriminator. It maps images `(B, C, H, W)` to logits, and several batches to a tuple. None trains
            without a discriminator.
        perceptual: P, on the images' device; may be None if `perceptual_weight` is 0.
        l1_weight: weight of the absolute differences.
        l2_weight: weight of the squared differences.
        perceptual_weight: weight of P, which the log shows by its own name.
        ssimulacra2_weight: weight of `SSIMULACRA2Loss`, which needs no network.
        quantizer_weight: weight of the quantizer's loss, which has weights of its own as well.
        disc_start: first step in which the discriminator influences the autoencoder.
        disc_pretrain_steps: number of steps before `disc_start` in which the discriminator trains already.
        disc_weight: weight of the adversarial loss, which is multiplied by the adaptive weight.
        disc_loss: "hinge" or "vanilla".

    Raises:
        ValueError: if an argument is out of range, or all weights of the reconstruction are 0.
    """

    def __init__(
        self,
        network: nn.Module | None,
        perceptual: PerceptualLoss | None = None,
        *,
        l1_weight: float = 1.0,
        l2_weight: float = 0.0,
        perceptual_weight: float = 1.0,
        ssimulacra2_weight: float = 0.0,
        quantizer_weight: float = 1.0,
        disc_start: int = 1,
        disc_pretrain_steps: int = 0,
        disc_weight: float = 0.8,
        disc_loss: str = "hinge",
    ):
        numbers = {k: v for k, v in locals().items() if isinstance(v, int | float)}
        for name, value in numbers.items():
            if not value >= 0:
                raise ValueError(f"{name} ({value}) must not be negative")
        if not l1_weight + l2_weight + perceptual_weight + ssimulacra2_weight:
            raise ValueError(
                "l1_weight, l2_weight, perceptual_weight and ssimulacra2_weight are all 0: set one of them"
            )
        if perceptual_weight and perceptual is None:
            raise ValueError(
                f"perceptual_weight ({perceptual_weight}) needs a PerceptualLoss; give one, or set it to 0"
            )
        if disc_loss not in DISCRIMINATOR_LOSSES:
            raise ValueError(
                f"disc_loss ({disc_loss!r}) does not exist: {did_you_mean(disc_loss, DISCRIMINATOR_LOSSES)}"
            )
        self.network, self.perceptual, self.disc_loss = network, perceptual, disc_loss
        self.l1_weight, self.l2_weight, self.perceptual_weight = l1_weight, l2_weight, perceptual_weight
        self.ssimulacra2, self.ssimulacra2_weight = SSIMULACRA2Loss(), ssimulacra2_weight
        self.quantizer_weight = quantizer_weight
        self.disc_start, self.disc_pretrain_steps = disc_start, disc_pretrain_steps
        self.disc_weight = disc_weight

    def generator_factor(self, step: int) -> float:
        """f: 1 if the discriminator influences the autoencoder in this step, else 0."""
        return float(self.network is not None and step >= self.disc_start)

    def discriminator_factor(self, step: int) -> float:
        """f_D: 1 if the discriminator trains in this step, else 0: then a trainer may skip the discriminator's part."""
        return float(self.network is not None and step >= self.disc_start - self.disc_pretrain_steps)

    def generator(
        self,
        images: torch.Tensor,
        reconstructions: torch.Tensor,
        quantizer_loss: torch.Tensor,
        last_layer: torch.Tensor | None,
        step: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the autoencoder. Its backward pass does not change the discriminator's gradients.

        All processes must call this in the same steps. Without gradients (validation) the adversarial part has weight 0.

        Args:
            images: `(B, 3, H, W)` in [-1, 1].
            reconstructions: the autoencoder's output for them, of the same shape, with its graph.
            quantizer_loss: `()`, the quantizer's own loss.
            last_layer: the decoder's last weight; None for an adaptive weight of 1.
            step: number of this batch, from 0.

        Returns:
            The loss `()` in fp32, and its parts as detached tensors `()`.

        Raises:
            ValueError: if shapes differ, the reconstructions do not depend on `last_layer`, or the discriminator is in
                eval mode.
        """
        _check_shapes(images, reconstructions)
        learns = torch.is_grad_enabled() and reconstructions.requires_grad
        factor = self.generator_factor(step)
        # A leaf, so that gradients stop at the reconstruction; with_gradient sends them on into the autoencoder.
        output = reconstructions.detach().float().requires_grad_(learns)
        nll, logs = self._reconstruction_loss(images.float(), output)
        gradient = gradient_at(nll, output) if learns else None

        zero = nll.new_zeros(())
        adversarial, weight = zero, zero
        if factor:
            self._check_mode(learns)
            network = _unwrap(
                self.network
            )  # its parameters get no gradients here, so a wrapper has nothing to exchange
            with frozen(network):
                logits = network(output).float()
            adversarial = -logits.mean()
            if learns:
                # Each logit's gradient is of the order of 1: half precision would lose 1 / count.
                pull = gradient_at(adversarial, output, scale=2.0 ** (logits.numel() - 1).bit_length())
                weight = self._adaptive_weight(reconstructions, last_layer, gradient, pull)
                gradient = gradient + weight * factor * pull

        value = (nll + weight * factor * adversarial).detach()
        loss = with_gradient(value, reconstructions, gradient) if learns else value
        loss = loss + self.quantizer_weight * quantizer_loss.float()
        logs |= {
            "nll": nll,
            "quantizer_loss": quantizer_loss,
            "generator_loss": adversarial,
            "disc_weight": weight,
            "loss": loss,
        }
        return loss, {name: value.detach().float() for name, value in logs.items()}

    def discriminator(
        self, images: torch.Tensor, reconstructions: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the discriminator. It sends no gradients into the autoencoder.

        Before the discriminator's first step the loss is multiplied by 0, so that wrappers and optimizers still get
        gradients of all parameters.

        Args:
            images: `(B, 3, H, W)` in [-1, 1].
            reconstructions: the tensor that was given to `generator`.
            step: number of this batch, from 0.

        Returns:
            The loss `()` in fp32, and detached tensors `()` for the log.

        Raises:
            ValueError: if there is no discriminator, it is in eval mode, or shapes differ.
        """
        if self.network is None:
            raise ValueError("network is None: give VQGANLoss a discriminator, or do not call discriminator()")
        _check_shapes(images, reconstructions)
        self._check_mode(torch.is_grad_enabled())
        real, fake = (
            logits.float() for logits in self.network(images.detach().float(), reconstructions.detach().float())
        )
        if self.disc_loss == "hinge":
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        logs = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return self.discriminator_factor(step) * loss, {name: value.detach() for name, value in logs.items()}

    def _reconstruction_loss(
        self, images: torch.Tensor, output: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """nll and its parts. A part of weight 0 is in neither of them."""
        parts = {}
        if self.l1_weight:
            parts["l1_loss"] = self.l1_weight, F.l1_loss(output, images)
        if self.l2_weight:
            parts["l2_loss"] = self.l2_weight, F.mse_loss(output, images)
        if self.perceptual_weight:
            parts[self.perceptual.name] = self.perceptual_weight, self.perceptual(images, output).mean()
        if self.ssimulacra2_weight:
            parts[self.ssimulacra2.name] = self.ssimulacra2_weight, self.ssimulacra2(images, output).mean()
        nll = torch.stack([weight * value for weight, value in parts.values()]).sum()
        return nll, {name: value for name, (_, value) in parts.items()}

    def _adaptive_weight(self, reconstructions, last_layer, nll_gradient, pull) -> torch.Tensor:
        """disc_weight * w, `()` fp32."""
        if last_layer is None:
            return nll_gradient.new_tensor(self.disc_weight)
        ours, theirs = last_layer_norms(reconstructions, last_layer, (nll_gradient, pull))
        return self.disc_weight * (ours / (theirs + ADAPTIVE_EPSILON)).clamp(0, ADAPTIVE_MAX)

    def _check_mode(self, learns: bool) -> None:
        if learns and not self.network.training:
            raise ValueError(
                "network (the discriminator) is in eval mode, as after from_pretrained: call .train() on it"
            )


def _unwrap(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, DistributedDataParallel) else network


def _check_shapes(images: torch.Tensor, reconstructions: torch.Tensor) -> None:
    if images.shape != reconstructions.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} must have the same shape"
        )
