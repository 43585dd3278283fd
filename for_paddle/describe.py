"""What a layer is and how it is set, in the same words on both sides.

Read from the framework's own object, so that two layers that should be alike can be compared, and a
layer can be computed again without the framework.
"""

from __future__ import annotations

from typing import Any

from paddle import nn

from for_paddle.layers import ResizeBilinear, ResizeNearest
from for_paddle.norm import InPlaceABN


def describe(layer: nn.Layer) -> dict[str, Any]:
    """Return the layer's kind and options, as numbers, texts and lists.

    ``kind`` is conv2d, batch_norm, inplace_abn, max_pool2d, avg_pool2d, linear, relu, leaky_relu,
    sigmoid, upsample, dropout; composite for a layer with sub-layers; else the class's name in
    lower case. ``momentum`` is the weight of the new value, as Torch has it, and
    ``momentum_as_held`` what the object holds; of what has two dimensions there are two numbers.
    """
    # Paddle keeps what its layers were made of in private attributes
    held: Any = layer
    if isinstance(layer, nn.Conv2D):
        return _convolution(held)
    if isinstance(layer, nn.BatchNorm2D):
        return {
            "kind": "batch_norm",
            "features": int(held.weight.shape[0]),
            # our own layer hands EPS to the kernel, whatever the framework's class holds
            "eps": float(getattr(held, "EPS", held._epsilon)),
            "momentum": round(1.0 - float(held._momentum), 12),
            "momentum_as_held": float(held._momentum),
        }
    if isinstance(layer, InPlaceABN):
        return {
            "kind": "inplace_abn",
            "features": int(layer.weight.shape[0]),
            "eps": layer.EPS,
            "momentum": 0.1,
            "momentum_as_held": 0.9,
            "negative_slope": 0.01 if layer.activation == "leaky_relu" else 1.0,
        }
    if isinstance(layer, (nn.MaxPool2D, nn.AvgPool2D)):
        return _pooling(held)
    if isinstance(layer, nn.Linear):
        return {
            "kind": "linear",
            "in_features": int(layer.weight.shape[0]),
            "out_features": int(layer.weight.shape[1]),
            "bias": held.bias is not None,
        }
    if isinstance(layer, nn.LeakyReLU):
        return {"kind": "leaky_relu", "negative_slope": float(held._negative_slope)}
    if isinstance(layer, nn.Dropout):
        return {"kind": "dropout", "p": layer.p}
    return _resize(layer) or _other(layer)


def _pair(value: Any) -> Any:
    """Return [height, width] of an option that may be one number; texts are left as they are."""
    if isinstance(value, str):
        return value
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def _convolution(layer: Any) -> dict[str, Any]:
    return {
        "kind": "conv2d",
        "in_channels": layer._in_channels,
        "out_channels": layer._out_channels,
        "kernel_size": _pair(layer._kernel_size),
        "stride": _pair(layer._stride),
        "padding": _pair(layer._padding),
        "padding_mode": layer._padding_mode,
        "dilation": _pair(layer._dilation),
        "groups": layer._groups,
        "bias": layer.bias is not None,
    }


def _pooling(layer: Any) -> dict[str, Any]:
    average = isinstance(layer, nn.AvgPool2D)
    stride = layer.ksize if layer.stride is None else layer.stride
    options: dict[str, Any] = {
        "kind": "avg_pool2d" if average else "max_pool2d",
        "kernel_size": _pair(layer.ksize),
        "stride": _pair(stride),
        "padding": _pair(layer.padding),
        "ceil_mode": layer.ceil_mode,
    }
    if average:
        options["count_include_pad"] = not layer.exclusive
    return options


def _resize(layer: nn.Layer) -> dict[str, Any] | None:
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


def _other(layer: nn.Layer) -> dict[str, Any]:
    name = type(layer).__name__
    if name not in _NAMED and any(True for _ in layer.children()):
        return {"kind": "composite", "class": name}
    return {"kind": _NAMED.get(name, name.lower()), "class": name}
