"""Which layer is blamed, by traces made by hand: a block b of the layers b.conv and b.relu."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config import load_config
from pipeline.blame import FINER, Traces, blame, call_of
from pipeline.failure import FailureCase
from pipeline.investigate import ALIKE, CASES, chosen
from pipeline.investigate_training import suspected_window
from pipeline.records import Array
from pipeline.trace_cases import About, case_of, record_key, text_of
from pipeline.traces import TraceRecord, pack, unpack
from pipeline.verdicts import Row, Verdict

CONFIG = load_config(
    Path(__file__).resolve().parent.parent / "configs" / "bisenetv1_cityscapes.yml"
)
CALLERS = {"train": {"": "", "b": "", "b.conv": "b", "b.relu": "b"}}
CUTS = (
    "input//0",
    "input/b/0",
    "input/b.conv/0",
    "output/b.conv",
    "input/b.relu/0",
    "output/b.relu",
    "output/b",
    "output/.main",
)


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {f"train/{cut}": rng.standard_normal((2, 3, 4, 4)) for cut in CUTS}
    found |= {f"train/gradient/{c}": rng.standard_normal((2, 3, 4, 4)) for c in CUTS[1:]}
    found |= {"loss/main": np.asarray(2.0), "loss/total": np.asarray(3.0)}
    found |= {"grad/b.conv.weight": rng.standard_normal((3, 3, 1, 1))}
    found |= {"buffer/b.bn.running_mean": rng.standard_normal(3)}
    found |= {"state/b.conv.weight": rng.standard_normal((3, 3, 1, 1)), "label": np.zeros(3)}
    return found


REFERENCE = TraceRecord(
    arrays(), CALLERS, {"train": {"b": {"1": [8, 16]}}}, {"": {}, "b": {"kind": "composite"}}
)


def traces(*wrong: str, lost: str = "", off: float = 1e-6) -> Traces:
    forced: dict[str, Array] = {
        key: array * (1 + off) if key in wrong else array
        for key, array in REFERENCE.arrays.items()
        if key != lost and not key.startswith("state/")
    }
    return Traces(REFERENCE, replace(REFERENCE, arrays=forced))


@pytest.mark.parametrize(
    ("wrong", "kind", "layer", "key", "text"),
    [
        (
            "train/output/b.conv",
            "layer",
            "b.conv",
            "train/layer/b.conv",
            "layer b.conv (train)",
        ),
        (
            "train/input/b.relu/0",
            "layer",
            "b",
            "train/input/b.relu/0",
            "layer b, in what it hands to b.relu (train)",
        ),
        (
            "train/input/b/0",
            "layer",
            "",
            "train/input/b/0",
            "the network itself, in what it hands to b (train)",
        ),
        (
            "train/output/.main",
            "layer",
            "",
            "train/head/main",
            "the network itself, head main (train)",
        ),
        ("loss/main", "loss", "loss", "loss/main", "loss term main"),
        (
            "train/gradient/output/.main",
            "logits_gradient",
            "loss",
            "layer/output/.main",
            "gradient of the loss at main",
        ),
        (
            "train/gradient/output/b.conv",
            "layer_gradient",
            "b",
            "layer/output/b.conv",
            "layer b, in the gradient it sends back to b.conv",
        ),
        (
            "train/gradient/input/b.relu/0",
            "layer_gradient",
            "b.relu",
            "layer/input/b.relu/0",
            "layer b.relu, in the gradient it sends back to its input",
        ),
        (
            "grad/b.conv.weight",
            "parameter_gradient",
            "b.conv.weight",
            "grad/b.conv.weight",
            "gradient of parameter b.conv.weight",
        ),
        (
            "buffer/b.bn.running_mean",
            "buffer",
            "b.bn.running_mean",
            "buffer/b.bn.running_mean",
            "buffer b.bn.running_mean",
        ),
    ],
)
def test_who_is_to_blame(wrong: str, kind: str, layer: str, key: str, text: str) -> None:
    (found,) = blame(traces(wrong))
    assert (found.kind, found.layer) == (kind, layer)
    assert record_key(found) == key
    assert text_of(found) == text


def test_nobody_is_to_blame_for_rounding() -> None:
    everything = tuple(key for key in REFERENCE.arrays if not key.startswith("state/"))
    assert blame(traces(*everything, off=3e-16)) == []
    assert blame(traces()) == []


def test_less_than_a_bound_is_looked_at_when_nothing_exceeds_it() -> None:
    small = 0.5 * FINER[1] * 1e-12
    (found,) = blame(traces("train/output/b.conv", off=small))
    assert found.layer == "b.conv"


def test_gradients_of_a_layer_that_is_wrong_forwards_are_not_told() -> None:
    found = blame(
        traces("train/output/b.conv", "train/gradient/input/b.conv/0", "grad/b.conv.weight")
    )
    assert [(one.kind, one.layer) for one in found] == [("layer", "b.conv")]


def test_the_first_comes_first_and_the_others_are_counted() -> None:
    found = blame(traces("train/output/b.relu", "train/input/b.conv/0", "train/output/b"))
    assert [(one.layer, one.others) for one in found] == [("b", 1), ("b.relu", 0)]
    backwards = blame(traces("train/gradient/output/b.conv", "train/gradient/input/b.relu/0"))
    assert [one.layer for one in backwards] == ["b.relu", "b"]


def test_a_gradient_that_never_comes_is_told_as_zeros() -> None:
    lost = traces(lost="train/gradient/output/b.conv")
    (found,) = blame(lost)
    assert text_of(found).endswith("sends back to b.conv: none arrives")
    case = case_of(found, lost, About("backward", "float64", CONFIG))
    assert not case.arrays["actual"].any()
    assert case.arrays["reference"].any()


def test_a_case_holds_what_its_layer_had() -> None:
    wrong = traces("train/input/b.relu/0")
    (found,) = blame(wrong)
    case = case_of(found, wrong, About("forward", "float64", CONFIG, inject="some_fault"))
    expected = {"input/0", "handed/conv/0", "child/conv", "handed/relu/0", "child/relu"}
    assert set(case.arrays) == {"reference", "actual", *expected}
    np.testing.assert_array_equal(case.arrays["input/0"], REFERENCE.arrays["train/input/b/0"])
    np.testing.assert_array_equal(
        case.arrays["child/conv"], REFERENCE.arrays["train/output/b.conv"]
    )
    assert (case.name, case.mode, case.spec["torch"]) == ("b", "train", {"kind": "composite"})
    assert case.settings["arguments"] == {"1": [8, 16]}
    assert case.settings["inject"] == "some_fault"
    wrong = traces("grad/b.conv.weight")
    case = case_of(blame(wrong)[0], wrong, About("training", "float64", CONFIG, iteration=7))
    assert set(case.arrays) == {
        "reference", "actual", "input/0", "output_gradient", "parameter/weight"
    }  # fmt: skip
    assert (case.iteration, case.phase) == (7, "backward")


def test_calls_are_told_from_parts() -> None:
    assert call_of(REFERENCE, "train", "output/b.conv") == ("b.conv", "")
    assert call_of(REFERENCE, "train", "output/b.conv.0") == ("b.conv", "0")
    assert call_of(REFERENCE, "train", "output/.main") == ("", "main")
    assert call_of(REFERENCE, "train", "input/b.conv/1") == ("b.conv", "1")


def test_float32_is_judged_by_what_the_layer_rounds() -> None:
    narrow = {k: a.astype(np.float32) for k, a in REFERENCE.arrays.items()}
    exact = replace(REFERENCE, arrays={k: a.astype(np.float64) for k, a in narrow.items()})
    rng = np.random.default_rng(1)

    def rounded(by: float) -> TraceRecord:
        return replace(
            REFERENCE,
            arrays={
                k: (a * (1 + by * rng.uniform(-1, 1, a.shape))).astype(np.float32)
                for k, a in narrow.items()
            },
        )

    reference, same = rounded(1e-7), rounded(1e-7)
    assert blame(Traces(reference, same, (exact, exact))) == []
    key = "train/output/b.conv"
    detour = {**same.arrays, key: same.arrays[key].astype(np.float16).astype(np.float32)}
    (found,) = blame(Traces(reference, replace(same, arrays=detour), (exact, exact)))
    assert found.layer == "b.conv"


def test_a_trace_is_written_once_and_read_back() -> None:
    x, y = np.arange(6.0), np.arange(3.0)
    about = {"callers": {"eval": {"": ""}}, "arguments": {}, "layers": {"": {"kind": "k"}}}
    packed = pack({"a": x, "b": y, "c": x.copy(), "d": x.reshape(2, 3)}, about)
    assert sorted(packed) == ["a", "b", "d", "trace"]
    found = unpack(packed)
    assert list(found.arrays) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found.arrays["c"], x)
    assert (found.callers, found.layers) == ({"eval": {"": ""}}, {"": {"kind": "k"}})
    forced = pack({"a": x + 0, "b": y + 1, "e": y}, about, reference=found.arrays)
    assert sorted(forced) == ["b", "e", "trace"]
    again = unpack(forced, reference=found.arrays)
    assert again.arrays["a"] is found.arrays["a"]
    np.testing.assert_array_equal(again.arrays["b"], [1, 2, 3])


def case(kind: str, name: str, layer: str) -> FailureCase:
    spec = {side: {"kind": layer} for side in ("torch", "paddle")}
    both = {"reference": np.ones(2), "actual": np.zeros(2)}
    return FailureCase("backward", "float64", name, kind, name, name, both, spec=spec)


def test_few_cases_of_a_kind_are_written() -> None:
    many = [case("buffer", f"bn{i}.running_mean", "batch_norm") for i in range(9)]
    other = [case("parameter_gradient", f"conv{i}.weight", "conv2d") for i in range(9)]
    names = [one.name for one in chosen([*many, *other])]
    assert names == ["bn0.running_mean", "bn1.running_mean", "conv0.weight", "conv1.weight"]
    assert len(names) == 2 * ALIKE
    layers = [case("layer", str(i), f"kind {i}") for i in range(9)]
    assert len(chosen(layers)) == CASES


PASS, FAIL = Verdict.PASS, Verdict.FAIL


@pytest.mark.parametrize(
    ("rows", "window"),
    [
        ([Row("iteration0010/state/a", PASS), Row("iteration0020/state/a", FAIL)], (11, 20)),
        ([Row("iteration0010/state/a", FAIL)], (1, 10)),
        # the loss at index 13 is that of the 14th iteration
        ([Row("iteration0010/state/a", PASS), Row("loss/main", FAIL, first=(13,))], (11, 14)),
        ([Row("iteration0010/state/a", PASS), Row("state/a", FAIL)], (11, 100)),
        ([Row("lr/decay", FAIL, first=(0,))], (1, 1)),
        ([Row("state/a", FAIL)], (1, 100)),
    ],
)
def test_the_window_of_a_training(rows: list[Row], window: tuple[int, int]) -> None:
    assert suspected_window(rows, last=100) == window
