"""Any timm backbone as one of ours: "timm/mobilevit_s" (MobileViT, arXiv:2110.02178, is the papers' baseline).

timm (PyTorch Image Models, Wightman 2019, github.com/huggingface/pytorch-image-models) is an extra: pip install timm.

    image (3, H, W)  ->  timm's features_only model  ->  its feature maps, channels first, with their own strides

Differs from the authors' code: the head is global average pooling and one linear layer, whatever the model's own is,
since a features_only model has none. The deploy form is what timm's `reparameterize_model` makes of it, with dtype and
trainability kept.
"""

import copy
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

from torch import Tensor, nn

from ..errors import ModelError, UsageError
from . import Backbone, Option, Pretrained

VARIANTS: dict[str, Callable[..., Backbone]] = {}  # timm's own names are not copied: see `make`
OPTIONS: tuple[str, ...] = ()
WEIGHTS: dict[str, Pretrained] = {}


class Timm(nn.Module):
    """image (N, 3, H, W) -> the features of a timm features_only model, each (N, C_i, h_i, w_i)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        info = cast(Any, model).feature_info
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
        self.channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        features = list(self.model(image))
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_last else features

    def classifier(self, classes: int) -> nn.Module:
        """(N, C, h, w) -> (N, classes)"""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], classes))

    def fuse(self) -> nn.Module:
        """timm's own deploy form, where the model has one; its batch norms elsewhere stay."""
        from timm.utils.model import reparameterize_model

        trainable = {name: p.requires_grad for name, p in self.named_parameters()}
        some = next(self.parameters())
        fused = copy.copy(self)
        fused._modules = {"model": reparameterize_model(self.model).to(some.device, some.dtype)}
        for name, parameter in fused.named_parameters():  # timm freezes what it did not fuse
            parameter.requires_grad_(trainable.get(name, any(trainable.values())))
        return fused


def check_name(name: str) -> None:
    """`ModelError` unless timm is installed and has a model of this name."""
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm/{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}: {nearest(name)}")


def nearest(name: str) -> str:
    """The end of an error message: timm's models that are called nearly so, as they are typed here."""
    import timm

    likely = get_close_matches(name.lower(), timm.list_models(), 4, 0.5)
    listed = "timm.list_models() lists all"
    return f"nearest: {', '.join(f'timm/{model}' for model in likely)}; {listed}" if likely else listed


def make(name: str, drop_path: float, output_stride: int, options: Mapping[str, Option]) -> Timm:
    """A timm model by its own name, with random weights.

    Raises `ModelError` if timm is not installed, has no such model, or if the model cannot give feature maps, drop path
    or the output stride asked for; `UsageError` for any option.
    """
    check_name(name)
    import timm

    if options:
        raise UsageError(f"timm/{name} has no option {next(iter(options))!r}: timm models take none")
    settings: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if output_stride != 32:
        settings["output_stride"] = output_stride
    try:  # a setting that a model does not know is a TypeError or an assertion, deep inside timm
        model = timm.create_model(name, features_only=True, **settings)
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError, AttributeError) as error:
        asked = f"drop_path {drop_path}, output_stride {output_stride}"
        raise ModelError(f"timm/{name} cannot be a backbone with {asked}: timm says {error}") from error
    return Timm(model)


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Nothing to rename: a timm backbone keeps timm's names under `backbone.model.`"""
    return state
