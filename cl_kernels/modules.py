"""The losses as ``nn.Module``s. A temperature given as ``nn.Parameter`` is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_kernels._numbers import check_flag
from cl_kernels.checks import as_scalar
from cl_kernels.losses import clip, info_nce, nt_xent, siglip
from cl_kernels.losses.common import Reduction, check_reduction
from cl_kernels.losses.hardest import check_hardest


class LossModule(nn.Module):
    """A loss with its settings; what it is called with goes to the function.

    A subclass names the function and, in order, the inputs that ``forward`` takes by position;
    anything else the function takes is passed by its name.
    """

    function: ClassVar[Callable[..., Tensor]]
    inputs: ClassVar[tuple[str, ...]]

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        check_reduction(settings["reduction"])
        check_flag("normalize", settings["normalize"])
        self._settings = tuple(settings)
        for name, value in settings.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        settings = {name: getattr(self, name) for name in self._settings}
        return type(self).function(**self._named(inputs, options), **settings)

    def _named(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """All that a call was given, by name."""
        if len(inputs) > len(self.inputs):
            raise TypeError(
                f"{type(self).__name__}: expected at most {len(self.inputs)} inputs by position "
                f"({', '.join(self.inputs)}), got {len(inputs)}"
            )
        named = dict(zip(self.inputs, inputs, strict=False))
        for name in named:
            if name in options:
                raise TypeError(f"{type(self).__name__}: expected {name} once, got it twice")
        return named | options

    def extra_repr(self) -> str:
        """Settings as they are passed; None, which leaves a choice to the call, is left out."""
        values = {name: getattr(self, name) for name in self._settings}
        return ", ".join(f"{name}={_shown(x)}" for name, x in values.items() if x is not None)


class NTXentLoss(LossModule):
    """``nt_xent`` as a module: ``loss(view_0, view_1, negative_keys=None, *, where=())``.

    Args:
        temperature: A number, or an ``nn.Parameter`` (0-d) to learn it.
        normalize, reduction, backend: As in ``nt_xent``.
    """

    function = nt_xent
    inputs = "view_0", "view_1", "negative_keys"

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        normalize: bool = True,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        as_scalar("temperature", temperature, inverted=True)
        super().__init__(
            temperature=temperature, normalize=normalize, reduction=reduction, backend=backend
        )


class InfoNCELoss(LossModule):
    """``info_nce`` as a module: ``loss(query, positive_key, negative_keys=None, *, target=None,
    negative_mask=None, where=())``.

    Args:
        temperature: A number, or an ``nn.Parameter`` (0-d) to learn it.
        normalize, in_batch_negatives, hardest, reduction, backend: As in ``info_nce``. ``hardest``
            may be set anew at any step, e.g. by a ``MiningSchedule``.
    """

    function = info_nce
    inputs = "query", "positive_key", "negative_keys"

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
        as_scalar("temperature", temperature, inverted=True)
        check_hardest(hardest)
        if in_batch_negatives is not None:
            check_flag("in_batch_negatives", in_batch_negatives)
        super().__init__(
            temperature=temperature,
            normalize=normalize,
            in_batch_negatives=in_batch_negatives,
            hardest=hardest,
            reduction=reduction,
            backend=backend,
        )


class ClipLoss(LossModule):
    """``clip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False)``.

    Args:
        normalize, reduction, backend: As in ``clip``.
    """

    function = clip
    inputs = "image_features", "text_features", "logit_scale", "logit_bias", "output_dict"

    def __init__(
        self,
        *,
        normalize: bool = False,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The loss, or ``{"contrastive_loss": loss}`` if ``output_dict``."""
        options = self._named(inputs, options)
        as_dict = options.pop("output_dict", False)
        loss = super().forward(**options)
        return {"contrastive_loss": loss} if as_dict else loss


class SigLipLoss(ClipLoss):
    """``siglip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False)``.

    Args:
        normalize, reduction, backend: As in ``siglip``.
    """

    function = siglip

    # its own: Python names the class whose constructor refuses an argument
    def __init__(
        self,
        *,
        normalize: bool = False,
        reduction: Reduction = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__(normalize=normalize, reduction=reduction, backend=backend)


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
