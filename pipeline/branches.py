"""What a recipe does not reach: other loss rules, a device's arithmetic, protocols, first weights.

A configuration chooses one rule of several, a CPU never takes the way of a GPU's tensors, and
weights by rule replace what a network is initialised with. A wrong line there would be found by
whoever changes the configuration, so each step records the other branches too, at a small size.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, get_args
from unittest import mock

import numpy as np

from common.config_sections import LossConfig, OhemRule
from common.protocols import Protocol, StartSize
from fake_data import rules
from pipeline.cases import Array, Case, build_network

IMAGES = 2
"""Of a loss case, the last: among them is the one without a label."""


@contextmanager
def as_on_a_device(module: Any) -> Generator[None]:
    """Let a module of a side treat CPU tensors as those of a GPU: NumPy cannot see them."""
    with mock.patch.object(module, "host_view", return_value=None):
        yield


def _ways(module: Any) -> Iterator[tuple[str, Any]]:
    yield "host", nullcontext()
    yield "device", as_on_a_device(module)


def loss_branches(side: Any, case: Case) -> dict[str, Array]:
    """Return loss and gradient of every rule of hard pixels, and of every form of the detail loss.

    Both as CPU tensors are counted and as a device's are. More than half of the pixels are kept
    by "min_kept" (of exactly half, the k-th largest is the k-th smallest): more than are hard
    in one case, more than are valid in another.
    """
    arrays: dict[str, Array] = {}
    for name, (logits, label) in _loss_cases(case).items():
        for rule in get_args(OhemRule):
            config = LossConfig(ohem=rule, min_kept=label.size // 2 + 1)
            criterion = _loss(side, case, config).criterion
            for way, context in _ways(side.losses):
                if (name, way) == ("tied", "device"):
                    # there any of equal losses may be taken
                    continue
                with context:
                    found = _values(side, criterion, logits, label)
                arrays |= {f"rule/{rule}/{way}/{name}/{key}": a for key, a in found.items()}
        boundary = np.ascontiguousarray(logits[:, :1, ::4, ::4])
        for void, frame in ((False, False), (True, False), (False, True), (True, True)):
            config = LossConfig(detail_ignore_void=void, detail_ignore_frame=frame)
            found = _values(side, _loss(side, case, config).detail, boundary, label)
            where = f"detail/void{int(void)}_frame{int(frame)}/{name}"
            arrays |= {f"{where}/{key}": array for key, array in found.items()}
    return arrays


def _loss_cases(case: Case) -> dict[str, tuple[Array, Array]]:
    """Return logits and labels of the step's cases and of two more, of two images each.

    few: less than one pixel is asked for, and one is kept. tied: every loss occurs twice, and an
    odd number is kept.
    """
    names = sorted({key.split("/")[0] for key in case.inputs})
    cases = {
        name: tuple(case.inputs[f"{name}/{kind}"][-IMAGES:] for kind in ("logits", "label"))
        for name in names
    }
    cases = {name: (case.cast(logits), label) for name, (logits, label) in cases.items()}
    void = case.config.data.ignore_index
    logits, label = cases["mostly_hard"]
    few = np.full_like(label, void)
    row, column = np.argwhere(label[0] != void)[0]
    few[0, row, column] = label[0, row, column]
    hard = logits
    logits, label = cases["mostly_easy"]
    tied = np.stack([label[0], label[0]])
    for row, column in np.argwhere(label[0] != void):
        if int((tied != void).sum()) // LossConfig().divisor % 2:
            break
        tied[:, row, column] = void
    return cases | {"few": (hard, few), "tied": (np.stack([logits[0], logits[0]]), tied)}


def _loss(side: Any, case: Case, config: LossConfig) -> Any:
    classes, ignore = case.config.model.classes, case.config.data.ignore_index
    return side.losses.build_loss(config, classes=classes, ignore_index=ignore)


def _values(side: Any, criterion: Any, logits: Array, label: Array) -> dict[str, Array]:
    """Return a criterion's terms, and the gradient of their sum."""
    leaf = side.backend.leaf_tensor(logits)
    loss = criterion(leaf, side.backend.to_tensor(np.ascontiguousarray(label)))
    terms: tuple[Any, ...] = loss if isinstance(loss, tuple) else (loss,)
    total: Any = sum(terms[1:], start=terms[0])
    total.backward()
    found = {f"loss/{i}": side.backend.to_numpy(term) for i, term in enumerate(terms)}
    return found | {"grad": side.backend.to_numpy(leaf.grad)}


def metric_branches(side: Any, case: Case) -> dict[str, Array]:
    """Return the counts of scores in place of classes, of single images, and of added matrices."""
    classes, ignore = case.config.model.classes, case.config.data.ignore_index
    settings = {"classes": classes, "ignore_index": ignore}
    prediction = case.inputs["all_classes/prediction"]
    label = case.inputs["all_classes/label"]
    arrays: dict[str, Array] = {}
    # the nearer a class is to the predicted one, the larger its score
    scores = -np.abs(prediction[:, None] - np.arange(classes)[:, None, None]).astype(case.dtype)
    confusion = side.metrics.ConfusionMatrix(**settings)
    confusion.update(side.backend.to_tensor(scores), side.backend.to_tensor(label))
    arrays["scores/matrix"] = confusion.matrix()
    together = side.metrics.ConfusionMatrix(**settings)
    for way, context in _ways(side.metrics):
        block = side.metrics.ImageBlock(**settings)
        with context:
            for one, its_label in zip(prediction, label, strict=True):
                block.add(side.backend.to_tensor(one), side.backend.to_tensor(its_label))
            matrices = block.matrices()
        for matrix in matrices:
            together.merge(matrix)
        arrays[f"images/{way}/matrices"] = np.stack(matrices)
        arrays[f"images/{way}/count"] = np.asarray(len(block))
        arrays[f"images/{way}/predictions"] = np.stack(block.predictions([len(block) - 1, 0]))
    # a device's counts on top of the host's
    with as_on_a_device(side.metrics):
        together.update(side.backend.to_tensor(prediction), side.backend.to_tensor(label))
        together.update(side.backend.to_tensor(prediction), side.backend.to_tensor(label))
    arrays["images/together"] = together.matrix()
    return arrays


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "windows", "", scales=(0.5, 1.25), flip=True, crop_hw=(48, 64), rule="exp_softmax",
            overlap="mean",
        ),
        Protocol("added_windows", "", scales=(1.0,), crop_hw=(48, 64), stride_rate=5 / 6),
        Protocol("whole", "", scales=(0.75, 1.0), flip=True, multiple=32),
        Protocol(
            "logits", "", flip=True, rule="logits", rounding="nearest", align_corners=False,
            start=StartSize(short_side=50),
        ),
    )
}  # fmt: skip
"""Of every field of a protocol more than one value."""
PROTOCOL_HW = (40, 76)
MAX_PIXELS = (2**18, 5000)
"""All pictures or windows in one pass, mirror images too; or a few at a time."""


def protocol_scores(side: Any, case: Case) -> dict[str, Array]:
    """Return the scores of two pictures under protocols, by a network of one layer."""
    layer = side.layers.ConvBNReLU(3, 4, kernel_size=3, stride=2, padding=1)
    shapes = {name: a.shape for name, a in side.backend.state_arrays(layer).items()}
    side.backend.load_arrays(layer, rules.rule_state(shapes))
    layer.eval()
    rng = np.random.default_rng([case.config.verify.seed, 2])
    image = side.backend.to_tensor(case.cast(rng.standard_normal((2, 3, *PROTOCOL_HW))))
    arrays: dict[str, Array] = {}
    for name, protocol in PROTOCOLS.items():
        for most in MAX_PIXELS:
            for way, context in _ways(side.evaluate):
                scorer = side.evaluate.Scorer(
                    lambda x: {"main": layer(x)}, protocol=protocol, max_pixels=most
                )
                with context:
                    scores = scorer.scores(image, size_hw=PROTOCOL_HW)
                arrays[f"protocol/{name}/{most}/{way}"] = side.backend.to_numpy(scores)
    return arrays


MANY, SOME = 10_000, 400
"""Elements from which a tensor's spread is known to a percent, and to five."""
NORMAL_TAIL = 2.5
"""Largest value over the spread is counted up to here: 1.7 if uniform, beyond if normal."""


def initial_weights(side: Any, case: Case) -> dict[str, Array]:
    """Return what each side's own initialisation draws from: the generators cannot agree.

    Of a constant its value; of a large tensor the spread, the mean beside it, and whether the
    distribution has tails; of every tensor whether it is constant.
    """
    side.backend.seed_everything(case.config.verify.seed)
    model = build_network(side, case.config.model)
    arrays: dict[str, Array] = {"init/aux_in_eval": np.asarray(int(model.aux_in_eval))}
    for name, array in side.backend.state_arrays(model).items():
        constant = bool(array.size) and bool((array == array.flat[0]).all())
        arrays[f"init/is_constant/{name}"] = np.asarray(int(constant))
        if constant:
            arrays[f"init/constant/{name}"] = np.asarray(float(array.flat[0]))
        elif array.size >= SOME:
            kind = "many" if array.size >= MANY else "some"
            spread = float(array.std())
            arrays[f"init/{kind}/spread/{name}"] = np.asarray(spread)
            # beside one, since a mean of zero has no size to be judged by
            arrays[f"init/{kind}/mean/{name}"] = np.asarray(1.0 + float(array.mean()) / spread)
            tail = min(float(np.abs(array).max()) / spread, NORMAL_TAIL)
            arrays[f"init/{kind}/tail/{name}"] = np.asarray(tail)
    return arrays


def without_auxiliary_heads(side: Any, case: Case) -> dict[str, Array]:
    """Return the logits of the network built as it is deployed, on a picture of an odd size."""
    key = next((key for key in case.inputs if key.startswith("odd")), "image")
    model = case.config.model
    network = side.models.build_model(
        model.name, classes=model.classes, aux_heads=False, options=model.options
    )
    shapes = {name: a.shape for name, a in side.backend.state_arrays(network).items()}
    side.backend.load_arrays(network, rules.rule_state(shapes))
    network.eval()
    with side.backend.no_grad():
        outputs = network(case.tensor(side, key))
    found = {f"deployed/head/{name}": side.backend.to_numpy(a) for name, a in outputs.items()}
    # as text: a shape such as 512 x 512 would be a constant, and so an empty check
    return found | {
        f"deployed/parameter/{name}": np.asarray(" x ".join(map(str, shape)))
        for name, shape in shapes.items()
    }


def other_options(side: Any, case: Case) -> dict[str, Array]:
    """Return the groups' options as an optimizer with other settings has them in force.

    No recipe uses Nesterov's momentum, and one family alone decays norms and biases: a setting that
    is not handed on would pass as its own default.
    """
    config = case.config
    optimizer, _ = side.optim.build_optimizer(
        build_network(side, config.model),
        optimizer=config.optimizer.model_copy(
            update={
                "momentum": 0.75,
                "nesterov": not config.optimizer.nesterov,
                "decay_norm_and_bias": not config.optimizer.decay_norm_and_bias,
                "head_lr_mult": config.optimizer.head_lr_mult * 2,
            }
        ),
        schedule=config.schedule,
    )
    return {
        f"options/other/{group}/{option}": np.asarray(float(value))
        for group, values in side.optim.group_options(optimizer).items()
        for option, value in values.items()
    }
