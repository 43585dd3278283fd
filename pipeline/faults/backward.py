"""Wrong gradients and BatchNorm buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, at, forward_of, in_model, replaced


def _norm_forward(after: Callable[[Any, str, Any], Any]) -> Patch:
    """Return a patch of BatchNorm's training forward: ``after(old, buffer name, new)``."""

    def make(right: Any, side: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            old = {name: getattr(self, name).clone() for name in ("_mean", "_variance")}
            out = right(self, x)
            if self.training:
                for name, before in old.items():
                    buffer = getattr(self, name)
                    buffer.set_value(after(before, name, buffer))
            return out

        return forward

    return replaced(lambda side: side.norm.BatchNorm2d, "forward", make)


def _detached_spatial(layer: Any, side: Any) -> Any:
    right = layer.forward
    return lambda image: right(image).detach()


def _frozen_bias(model: Any, side: Any) -> None:
    at(model, "conv_out.conv_out").bias.stop_gradient = True


def _half_gradient(layer: Any, side: Any) -> Any:
    right = layer.forward

    def forward(x: Any) -> Any:
        out = right(x)
        return out * 0.5 + out.detach() * 0.5

    return forward


BACKWARD = (
    Fault(
        "bn_momentum",
        "backward",
        "buffer/cp.resnet.bn1.running_mean",
        "BatchNorm momentum 0.1 in Paddle's convention",
        _norm_forward(lambda old, _, new: old + 9 * (new - old)),
        why="momentum-convention",
    ),
    Fault(
        "bn_biased_variance",
        "backward",
        "buffer/*running_var",
        "the running variance takes the biased variance",
        replaced(
            lambda side: side.norm.BatchNorm2d,
            "_kernel_variance_is_biased",
            lambda _right, _side: staticmethod(lambda _device, _dtype: False),
        ),
        why="biased-variance",
    ),
    Fault(
        "bn_buffers_frozen",
        "backward",
        "buffer/cp.resnet.bn1.running_mean",
        "running statistics are not updated",
        _norm_forward(lambda old, _, new: old),
        why="stale-running-statistics",
    ),
    Fault(
        "branch_detached",
        "backward",
        "layer/sp*",
        "no gradient flows into the spatial path",
        forward_of("sp", _detached_spatial),
        why="detached-branch",
    ),
    Fault(
        "half_gradient",
        "backward",
        "layer/cp.arm32*",
        "half of a branch's gradient is detached",
        forward_of("cp.arm32", _half_gradient),
        why="constant-factor",
    ),
    Fault(
        "bias_frozen",
        "backward",
        "grad/conv_out.conv_out.bias",
        "a bias does not ask for its gradient",
        in_model(_frozen_bias),
        why="detached-branch",
    ),
)
