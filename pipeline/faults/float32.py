"""Ports that are right in float64 and wrong in float32: what only the float32 rule can see.

Each leaves a float64 run untouched and takes a detour through fewer digits in a float32 one, as
autocast, a fused kernel or a careless cast would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.faults.patching import Fault, Patch, at, forward_of, functional, in_model, replaced

Change = Callable[[Any], Any]


def is_float32(x: Any) -> bool:
    """Tell whether a tensor is float32."""
    return str(x.dtype).endswith("float32")


def _short(dtype: str) -> Change:
    """Return the rounding of float32 tensors to a shorter dtype; others are left as they are."""
    return lambda x: x.astype(dtype).astype("float32") if is_float32(x) else x


_half, _brain = _short("float16"), _short("bfloat16")


def _convolution_of(rounded: Change, **options: Any) -> Callable[[Any, Any], Any]:
    def make(layer: Any, side: Any) -> Any:
        conv2d = functional(side).conv2d
        return lambda x: conv2d(rounded(x), rounded(layer.weight), **options)

    return make


def _result(rounded: Change) -> Callable[[Any, Any], Any]:
    def make(layer: Any, side: Any) -> Any:
        right = layer.forward
        return lambda *inputs: rounded(right(*(rounded(x) for x in inputs)))

    return make


def _eps(layer: Any, side: Any) -> Any:
    right = layer.forward

    def forward(x: Any) -> Any:
        layer.EPS = 1.2e-5 if is_float32(x) else 1e-5
        return right(x)

    return forward


def _half_statistics(layer: Any, side: Any) -> Any:
    """Normalise by E[x^2] - E[x]^2, both kept in float16."""
    right = layer.forward

    def forward(x: Any) -> Any:
        if not (layer.training and is_float32(x)):
            return right(x)
        right(x)
        mean = _half(x.mean(axis=[0, 2, 3], keepdim=True))
        variance = _half((x * x).mean(axis=[0, 2, 3], keepdim=True)) - mean * mean
        scale, shift = (p.reshape([1, -1, 1, 1]) for p in (layer.weight, layer.bias))
        return (x - mean) / (variance + layer.EPS).sqrt() * scale + shift

    return forward


def _gradient(rounded: Change) -> Callable[[Any, Any], Any]:
    def make(layer: Any, side: Any) -> Any:
        right = layer.forward

        def forward(x: Any) -> Any:
            # as autocast leaves it: what flows back has been a short number
            x = x * 1.0
            x.register_hook(rounded)
            return right(x)

        return forward

    return make


def _short_buffers(model: Any, side: Any) -> None:
    layer = at(model, "cp.resnet.bn1")
    right = layer.forward

    def forward(x: Any) -> Any:
        out = right(x)
        for buffer in (layer._mean, layer._variance) if layer.training else ():
            buffer.set_value(_half(buffer))
        return out

    layer.forward = forward


def _pixel_losses(rounded: Change) -> Callable[[Any, Any], Any]:
    def make(right: Any, side: Any) -> Any:
        F = functional(side)

        def pixel_losses(logits: Any, label: Any, *, ignore_index: int) -> Any:
            if not is_float32(logits):
                return right(logits, label, ignore_index=ignore_index)
            likely = rounded(F.log_softmax(rounded(logits), axis=1))
            return F.nll_loss(likely, label, ignore_index=ignore_index, reduction="none")

        return pixel_losses

    return make


def _after_step(change: Callable[[Any, Any], None]) -> Patch:
    """Return a patch that does something after every step of the optimizer."""

    def make(right: Any, side: Any) -> Any:
        def build(model: Any, **options: Any) -> Any:
            built, scheduler = right(model, **options)
            step = built.step

            def changed_step() -> None:
                step()
                change(built, side.backend.trainable_parameters(model).values())

            built.step = changed_step
            return built, scheduler

        return build

    return replaced(lambda side: side.optim, "build_optimizer", make)


def _short_momentum(optimizer: Any, parameters: Any) -> None:
    for velocity in vars(optimizer)["_accumulators"]["velocity"].values():
        velocity.set_value(_half(velocity))


def _short_weights(optimizer: Any, parameters: Any) -> None:
    for parameter in parameters:
        parameter.set_value(_brain(parameter.detach()))


def _short_images(rounded: Change) -> Patch:
    def make(right: Any, side: Any) -> Any:
        def train_step(model: Any, *args: Any, image: Any, label: Any) -> Any:
            return right(model, *args, image=rounded(image), label=label)

        return train_step

    return replaced(lambda side: side.train, "train_step", make)


def _autocast(rounded: Change) -> Patch:
    """Round what every convolution returns, while training only."""

    def make(right: Any, side: Any) -> Any:
        def train_step(model: Any, *args: Any, **batch: Any) -> Any:
            hooks = [
                layer.register_forward_post_hook(lambda _l, _i, out: rounded(out))
                for layer in model.sublayers()
                if isinstance(layer, side.layers.nn.Conv2D)
            ]
            terms = right(model, *args, **batch)
            for hook in hooks:
                hook.remove()
            return terms

        return train_step

    return replaced(lambda side: side.train, "train_step", make)


def _fault(
    name: str, step: str, where: str, title: str, patch: Patch, *, why: str | None = None
) -> Fault:
    return Fault(name, step, where, title, patch, dtype="float32", why=why)


FLOAT32 = (
    _fault(
        "conv_float16",
        "forward",
        "eval/layer/sp.conv2.conv",
        "a convolution rounds input and weights to float16",
        forward_of("sp.conv2.conv", _convolution_of(_half, stride=2, padding=1)),
        why="dtype-float16",
    ),
    _fault(
        "sigmoid_float16",
        "forward",
        "eval/layer/cp.arm16.sigmoid_atten",
        "the attention's sigmoid in float16",
        forward_of("cp.arm16.sigmoid_atten", _result(_half)),
    ),
    _fault(
        "resize_bfloat16",
        "forward",
        "eval/layer/conv_out.up",
        "the main logits resized in bfloat16",
        forward_of("conv_out.up", _result(_brain)),
        why="dtype-bfloat16",
    ),
    _fault(
        "bn_eps_float32",
        "forward",
        "eval/layer/cp.resnet.bn1",
        "BatchNorm eps 1.2e-5",
        forward_of("cp.resnet.bn1", _eps),
        why="eps",
    ),
    _fault(
        "bn_statistics_float16",
        "forward",
        "train/layer/cp.resnet.bn1",
        "BatchNorm keeps E[x] and E[x^2] of the batch in float16",
        forward_of("cp.resnet.bn1", _half_statistics),
        why="dtype-float16",
    ),
    _fault(
        "log_softmax_float16",
        "loss",
        "*/loss/main",
        "the loss's log-softmax in float16",
        replaced(lambda side: side.losses, "pixel_losses", _pixel_losses(_half)),
        why="dtype",
    ),
    _fault(
        "gradient_float16",
        "backward",
        "rounding/conv_out32.conv.*",
        "a head's gradient passes through float16",
        forward_of("conv_out32.conv_out", _gradient(_half)),
        why="dtype-float16",
    ),
    _fault(
        "bn_buffers_float16",
        "backward",
        "buffer/cp.resnet.bn1.running_mean",
        "running statistics kept in float16",
        in_model(_short_buffers),
        why="dtype-float16",
    ),
    _fault(
        "momentum_float16",
        "optimizer",
        "step1/momentum/*",
        "momentum buffers kept in float16",
        _after_step(_short_momentum),
        why="dtype",
    ),
    _fault(
        "weights_bfloat16",
        "optimizer",
        "step1/param/*",
        "weights kept in bfloat16, without a master copy",
        _after_step(_short_weights),
        why="dtype",
    ),
    _fault(
        "autocast_bfloat16",
        "training",
        "first/loss",
        "every convolution returns bfloat16 while training",
        _autocast(_brain),
    ),
    _fault(
        "images_float16",
        "training",
        "first/loss",
        "the network is trained on images in float16",
        _short_images(_half),
    ),
)
