"""What a layer is and how it is set, in the same words on both sides.

Read from the framework's own object, so that two layers that should be alike can be compared, and a
layer can be computed again without the framework.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from for_torch.layers import ResizeBilinear, ResizeNearest
from for_torch.norm import InPlaceABN


def describe(layer: nn.Module) -> dict[str, Any]:
    """Return the layer's kind and options, as numbers, texts and lists.

    ``kind`` is conv2d, batch_norm, inplace_abn, max_pool2d, avg_pool2d, linear, relu, leaky_relu,
    sigmoid, upsample, dropout; composite for a layer with sub-layers; else the class's name in
    lower case. ``momentum`` is the weight of the new value, as Torch has it, and
    ``momentum_as_held`` what the object holds; of what has two dimensions there are two numbers.
    """
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer)
    if isinstance(layer, nn.BatchNorm2d):
        return {
            "kind": "batch_norm",
            "features": layer.num_features,
            "eps": layer.eps,
            "momentum": layer.momentum,
            "momentum_as_held": layer.momentum,
        }
    if isinstance(layer, InPlaceABN):
        return {
            "kind": "inplace_abn",
            "features": int(layer.weight.shape[0]),
            "eps": layer.EPS,
            "momentum": 0.1,
            "momentum_as_held": 0.1,
            "negative_slope": 0.01 if layer.activation == "leaky_relu" else 1.0,
        }
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return _pooling(layer)
    if isinstance(layer, nn.Linear):
        return {
            "kind": "linear",
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": "bias" in dict(layer.named_parameters()),
        }
    if isinstance(layer, nn.LeakyReLU):
        return {"kind": "leaky_relu", "negative_slope": layer.negative_slope}
    if isinstance(layer, nn.Dropout):
        return {"kind": "dropout", "p": layer.p}
    return _resize(layer) or _other(layer)


def _pair(value: Any) -> Any:
    """Return [height, width] of an option that may be one number; texts are left as they are."""
    if isinstance(value, str):
        return value
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def _convolution(layer: nn.Conv2d) -> dict[str, Any]:
    return {
        "kind": "conv2d",
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "kernel_size": _pair(layer.kernel_size),
        "stride": _pair(layer.stride),
        "padding": _pair(layer.padding),
        "padding_mode": layer.padding_mode,
        "dilation": _pair(layer.dilation),
        "groups": layer.groups,
        "bias": layer.bias is not None,
    }


def _pooling(layer: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    options: dict[str, Any] = {
        "kind": "max_pool2d" if isinstance(layer, nn.MaxPool2d) else "avg_pool2d",
        "kernel_size": _pair(layer.kernel_size),
        "stride": _pair(layer.stride),
        "padding": _pair(layer.padding),
        "ceil_mode": layer.ceil_mode,
    }
    if isinstance(layer, nn.AvgPool2d):
        options["count_include_pad"] = layer.count_include_pad
    return options


def _resize(layer: nn.Module) -> dict[str, Any] | None:
    if isinstance(layer, ResizeNearest):
        return {"kind": "upsample", "mode": "nearest", "scale_factor": layer.scale}
    if isinstance(layer, ResizeBilinear):
        return {
            "kind": "upsample",
            "mode": "bilinear",
            "scale_factor": layer.scale,
            "align_corners": False,
        }
    if type(layer).__name__ == "ResizeToSize":
        bilinear = getattr(layer, "form", "") == "2020"
        options = {"mode": "bilinear", "align_corners": True} if bilinear else {"mode": "nearest"}
        return {"kind": "upsample", **options}
    return None


_NAMED = {"ReLU": "relu", "Sigmoid": "sigmoid", "Identity": "identity", "Softmax": "softmax"}


def _other(layer: nn.Module) -> dict[str, Any]:
    name = type(layer).__name__
    if name not in _NAMED and any(True for _ in layer.children()):
        return {"kind": "composite", "class": name}
    return {"kind": _NAMED.get(name, name.lower()), "class": name}
