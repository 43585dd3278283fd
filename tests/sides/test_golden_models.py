"""Every published network against the recorded outputs of its original implementation.

One battery for all: weights and images by rule, then outputs, losses, gradients, running statistics
and every layer, in float64. What is special about a network is in the table of networks.py.
"""

import json
import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import (
    BOUNDARY_STRIDE,
    NETWORKS,
    RECORDED,
    RTOL,
    STRIDES,
    Network,
    assert_close,
    assert_sums,
    logits_of,
    rule_model,
)

from common.weight_names import is_batch_counter
from fake_data import rules


class Run:
    """One network, one case: eval and train outputs, loss, gradients and buffers after a step."""

    def __init__(self, side: Any, golden: Path, network: Network, case: str) -> None:
        files = golden / "models"
        record = json.loads((files / f"{network.stem}.json").read_text())
        self.network, self.case, self.side = network, case, side.name
        self.modules = record["eval_modules"]
        self.row = record["cases"][case]
        self.arrays = dict(np.load(files / f"{network.stem}_{case}.npz"))
        size = (self.row["seed"], self.row["N"], self.row["H"], self.row["W"])
        image = side.backend.to_tensor(rules.image(*size))
        label = side.backend.to_tensor(rules.labels(*size))
        model = rule_model(side, network.model, **network.every_flag)
        model.aux_in_eval = True
        model.eval()
        with side.backend.no_grad(), side.backend.capture_outputs(model) as self.layers:
            evaluated = model(image)
        model.train()
        trained = model(image)
        loss = side.losses.build_loss(network.loss, classes=19, ignore_index=255)
        losses = loss({head: trained[head] for head in network.trained_heads}, label)
        losses["total"].backward()
        self.outputs = {
            f"{mode}/{network.upstream(head)}": side.backend.to_numpy(value)
            for mode, logits in (("eval", evaluated), ("train", trained))
            for head, value in logits.items()
        }
        self.heads = [tuple(evaluated), tuple(trained), tuple(model.heads)]
        self.losses = {name: side.backend.to_numpy(value).item() for name, value in losses.items()}
        self.parameters = list(side.backend.trainable_parameters(model))
        self.gradients = side.backend.gradients(model)
        self.state = side.backend.state_arrays(model)


@pytest.fixture(
    scope="module",
    params=[(network, case) for network in NETWORKS for case in network.cases],
    ids=lambda pair: f"{pair[0].model}-{pair[1]}",
)
def run(request: pytest.FixtureRequest, side: Any, golden: Path) -> Run:
    return Run(side, golden, *request.param)


def test_outputs_are_upstreams(run: Run) -> None:
    assert run.heads == [run.network.every_head] * 3
    assert len(run.outputs) == 2 * len(run.network.every_head)
    for name, output in run.outputs.items():
        row = run.row["outputs"][name]
        assert list(output.shape) == row["shape"]
        stride = BOUNDARY_STRIDE if "_sp" in name else STRIDES[run.case]
        assert_close(output[:, :, ::stride, ::stride], run.arrays[name], name)
        assert_sums(output, row, name)
        extremes = [output.min(), output.max()]
        np.testing.assert_allclose(extremes, [row["min"], row["max"]], rtol=RTOL, err_msg=name)
        if f"{name}/argmax" in run.arrays:
            np.testing.assert_array_equal(output.argmax(1), run.arrays[f"{name}/argmax"])


def test_losses_are_upstreams(run: Run) -> None:
    network = run.network
    assert run.losses["total"] == pytest.approx(run.row["loss"], rel=RTOL, abs=0)
    names = {network.upstream(head): head for head in network.heads}
    if network.boundaries:
        names |= {f"detail_{term}": f"boundary8_{term}" for term in ("bce", "dice")}
    assert set(run.row["loss_parts"]) == set(names)
    for theirs, expected in run.row["loss_parts"].items():
        assert run.losses[names[theirs]] == pytest.approx(expected, rel=RTOL, abs=0)


def test_gradients_are_upstreams(run: Run) -> None:
    network = run.network
    assert run.row["grads"]["columns"] == ["parameter", "l2", "sum", "absmax"]
    rows = {row[0]: row[1:] for row in run.row["grads"]["rows"]}
    assert run.parameters == list(rows)
    unreached = [name for name, numbers in rows.items() if None in numbers]
    assert unreached == [name for name in rows if name.startswith(network.without_gradient or "-")]
    assert len(unreached) == network.unreached
    assert list(run.gradients) == [name for name in rows if name not in unreached]
    largest_of_all = max(rows[name][2] for name in run.gradients)
    # the recorded numbers are Torch's: on that side there is no other order of the sums
    ours = run.network.gradient_rtol if run.side == "paddle" else {}
    rtol = ours.get(run.case, RTOL)
    for name, gradient in run.gradients.items():
        l2, total, largest = rows[name]
        if name in network.cancelled:
            assert max(abs(gradient).max(), largest) <= 1e-13 * largest_of_all, name
            continue
        assert abs(gradient).max() == pytest.approx(largest, rel=rtol, abs=0), name
        assert_sums(gradient, {"sum": total, "sumsq": l2**2}, name, rtol=rtol)
    full = [name for name in run.arrays if name.startswith("grad/")]
    assert len(full) == (8 if run.case == "a" else 0)
    for name in full:
        if name.removeprefix("grad/") not in network.cancelled:
            assert_close(run.gradients[name.removeprefix("grad/")], run.arrays[name], name)


def test_running_statistics_are_upstreams(run: Run, golden: Path) -> None:
    expected = {name for name in run.state if "running_" in name}
    assert len(expected) == (run.network.buffers or len(expected))
    if run.case == "a":
        recorded = dict(np.load(golden / f"models/{run.network.stem}_a_bn.npz"))
        assert set(recorded) == expected
        for name, reference in recorded.items():
            assert_close(run.state[name], reference, name)
        return
    rows = run.row["bn_after_one_train_forward"]["rows"]
    assert {row[0] for row in rows} == expected
    assert len(rows) == len(expected)
    for name, total, squares in rows:
        assert_sums(run.state[name], {"sum": total, "sumsq": squares}, name)


def test_every_layer_is_upstreams(run: Run) -> None:
    """Same names in the same order, same output: a wrong layer is found by its name."""
    if run.case != "a":
        pytest.skip("recorded for case a only")
    network = run.network
    assert run.modules["columns"] == ["module", "shape", "mean", "std", "absmax"]
    rows = {
        name: row
        for name, row in _named_rows(run)
        if not name.startswith(network.repeated_rows or "-")
    }
    assert len(rows) == (network.layers or len(rows))
    ours = [name for name in run.layers if name not in rows]
    for name in ours:
        assert any(fnmatchcase(name, pattern) for pattern in network.own_layers), name
    for pattern in network.own_layers:
        assert any(fnmatchcase(name, pattern) for name in ours), pattern
    order = [name for name in run.layers if name in rows]
    theirs = list(rows)
    if network.by_child:
        # upstream runs the boundary heads before the main one
        order, theirs = (sorted(names, key=lambda n: n.split(".")[0]) for names in (order, theirs))
    elif network.parts:
        # upstream runs the same parts in another order
        order, theirs = sorted(order), sorted(theirs)
    assert order == theirs
    for name, (_, shape, mean, std, largest) in rows.items():
        array = run.layers[name]
        assert list(array.shape) == shape, name
        numbers = [array.std(), abs(array).max()]
        np.testing.assert_allclose(numbers, [std, largest], rtol=RTOL, err_msg=name)
        assert abs(array.mean() - mean) <= RTOL * largest, name


def _named_rows(run: Run) -> list[tuple[str, Any]]:
    """Return upstream's calls of layers under our names."""
    # upstream names the parts of a tuple "cp[0]", and a layer that is called again as before
    parts = {f"cp[{index}]": name for index, name in enumerate(run.network.parts)}
    calls: dict[str, int] = {}
    found: list[tuple[str, Any]] = []
    for row in run.modules["rows"]:
        name = parts.get(row[0], row[0].replace("[", ".").replace("]", ""))
        calls[name] = calls.get(name, -1) + 1
        found.append((f"{name}#{calls[name]}" if calls[name] else name, row))
    return found


@pytest.mark.parametrize("network", RECORDED, ids=lambda n: n.model)
def test_names_and_shapes_are_the_published_ones(
    side: Any, published_keys: Path, network: Network
) -> None:
    content = json.loads((published_keys / f"{network.stem}.json").read_text())
    # every tensor of STDC's backbone is listed again under x2, x4, ...: once is enough
    aliases = content.get("aliases", ())
    keys = {key: shape for key, shape in content["keys"].items() if key not in aliases}
    assert len(keys) == network.keys
    model = side.models.build_model(network.model, classes=19)
    found = {name: list(a.shape) for name, a in side.backend.state_arrays(model).items()}
    expected = {name: shape for name, shape in keys.items() if not is_batch_counter(name)}
    assert list(found.items()) == list(expected.items())
    own = list(model.state_dict())
    assert own == list(keys) if side.name == "torch" else len(own) == len(expected)
    trainable = side.backend.trainable_parameters(model)
    numbers = sum(math.prod(tensor.shape) for tensor in trainable.values())
    assert (len(trainable), numbers) == (network.tensors, network.numbers)


@pytest.mark.parametrize(
    "network", [network for network in RECORDED if network.negative], ids=lambda n: n.model
)
def test_negative_weights_are_upstreams(side: Any, golden: Path, network: Network) -> None:
    """The weights of InPlaceABN may be negative in a checkpoint; their sign has no meaning."""
    recorded = np.load(golden / "negative_gamma.npz")
    model = rule_model(side, network.model)
    state = side.backend.state_arrays(model)
    layers = recorded[f"{network.stem}/layers"].tolist()
    abn = set(side.backend.layers_of(model, side.norm.InPlaceABN))
    assert set(layers) == abn
    for layer in layers:
        state[f"{layer}.weight"][1::2] *= -1
    side.backend.load_arrays(model, state)
    model.eval()
    logits = logits_of(side, model, rules.image(1000, 2, 64, 128))["main"]
    assert_close(logits[:, :, ::11, ::11], recorded[network.stem], network.model)
    total, squares = recorded[f"{network.stem}/sum_sumsq"]
    assert_sums(logits, {"sum": total, "sumsq": squares}, network.model)
