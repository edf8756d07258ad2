"""The losses as ``nn.Module``s. A temperature given as ``nn.Parameter`` is learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cl_kernels.checks import as_scalar
from cl_kernels.losses import clip, info_nce, nt_xent
from cl_kernels.losses.common import Reduction, check_reduction
from cl_kernels.losses.hardest import check_hardest
from cl_kernels.pairs import Where


class _Temperature(nn.Module):
    def __init__(
        self,
        temperature: float | Tensor,
        *,
        normalize: bool,
        reduction: Reduction,
        backend: str | None,
    ) -> None:
        super().__init__()
        as_scalar("temperature", temperature, inverted=True)
        check_reduction(reduction)
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.backend = backend

    def extra_repr(self) -> str:
        return _settings(self, "temperature", "normalize", "reduction", "backend")


class NTXentLoss(_Temperature):
    """``nt_xent`` as a module.

    Args:
        temperature: A number, or an ``nn.Parameter`` (0-d) to learn it.
        normalize, reduction, backend: As in ``nt_xent``.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        normalize: bool = True,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(temperature, normalize=normalize, reduction=reduction, backend=backend)

    def forward(
        self,
        view_0: Tensor,
        view_1: Tensor,
        negative_keys: Tensor | None = None,
        *,
        where: Where = (),
    ) -> Tensor:
        return nt_xent(
            view_0,
            view_1,
            self.temperature,
            normalize=self.normalize,
            negative_keys=negative_keys,
            where=where,
            reduction=self.reduction,
            backend=self.backend,
        )


class InfoNCELoss(_Temperature):
    """``info_nce`` as a module.

    Args:
        temperature: A number, or an ``nn.Parameter`` (0-d) to learn it.
        normalize, in_batch_negatives, hardest, reduction, backend: As in ``info_nce``. ``hardest``
            may be set anew at any step, e.g. by a ``MiningSchedule``.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        normalize: bool = True,
        in_batch_negatives: bool | None = None,
        hardest: int | None = None,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(temperature, normalize=normalize, reduction=reduction, backend=backend)
        check_hardest(hardest)
        self.in_batch_negatives = in_batch_negatives
        self.hardest = hardest

    def extra_repr(self) -> str:
        return _settings(
            self,
            "temperature", "normalize", "in_batch_negatives", "hardest", "reduction", "backend",
        )  # fmt: skip

    def forward(
        self,
        query: Tensor,
        positive_key: Tensor,
        negative_keys: Tensor | None = None,
        *,
        target: Tensor | None = None,
        negative_mask: Tensor | None = None,
        where: Where = (),
    ) -> Tensor:
        return info_nce(
            query,
            positive_key,
            negative_keys,
            temperature=self.temperature,
            normalize=self.normalize,
            in_batch_negatives=self.in_batch_negatives,
            target=target,
            negative_mask=negative_mask,
            where=where,
            hardest=self.hardest,
            reduction=self.reduction,
            backend=self.backend,
        )


class ClipLoss(nn.Module):
    """``clip`` as a module, called as open_clip calls its loss.

    Args:
        normalize, reduction, backend: As in ``clip``.
    """

    def __init__(
        self,
        *,
        normalize: bool = False,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or ``{"contrastive_loss": loss}`` if ``output_dict``."""
        loss = clip(
            image_features,
            text_features,
            logit_scale,
            logit_bias,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
        )
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        return _settings(self, "normalize", "reduction", "backend")


def _settings(module: nn.Module, *names: str) -> str:
    """Settings as they are passed; None, which leaves a choice to the call, is left out."""
    values = {name: getattr(module, name) for name in names}
    return ", ".join(f"{name}={_shown(x)}" for name, x in values.items() if x is not None)


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    unread = f"<tensor on {value.device}>"
    if torch.compiler.is_compiling():
        return unread
    try:
        return repr(value.item())
    except Exception:  # no value on meta nor under FakeTensorMode; a repr is for looking into that
        return unread
