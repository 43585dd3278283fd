"""Scores under a protocol: against the recorded public evaluators, and by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.iou import confusion_matrix
from common.protocols import NONE, PROTOCOLS, Protocol, StartSize
from fake_data import rules

CROP_HW = (128, 192)
"""The window of the recorded runs."""
CLASSIFIER = "conv_out.conv_out.weight"

FLOAT32_SUM = 12 * 2.0**-24
"""Of the largest score: whole pictures were summed in float32 there, up to twelve maps, and each
sum is rounded by at most 2**-24 of itself."""
FLOAT64_SUM = 1e-12
"""Of the largest score: windows, and STDC's single pass, are float64 from end to end."""

CASES: dict[str, tuple[str, Protocol, float]] = {
    "coincheung/ss": ("bisenetv1", PROTOCOLS["ss"], FLOAT32_SUM),
    "coincheung/ss_odd": ("bisenetv1", PROTOCOLS["ss"], FLOAT32_SUM),
    "coincheung/ss_shortside": (
        "bisenetv1",
        replace(PROTOCOLS["ss"], start=StartSize(short_side=160)),
        FLOAT32_SUM,
    ),
    "coincheung/ss_longside": (
        "bisenetv1",
        replace(PROTOCOLS["ss"], start=StartSize(long_side=200)),
        FLOAT32_SUM,
    ),
    "coincheung/ss_shape": (
        "bisenetv1",
        replace(PROTOCOLS["ss"], start=StartSize(shape_hw=(128, 224))),
        FLOAT32_SUM,
    ),
    "coincheung/msf": ("bisenetv1", PROTOCOLS["msf"], FLOAT32_SUM),
    "coincheung/ssc": ("bisenetv1", replace(PROTOCOLS["ssc"], crop_hw=CROP_HW), FLOAT64_SUM),
    "coincheung/ssc_odd": ("bisenetv1", replace(PROTOCOLS["ssc"], crop_hw=CROP_HW), FLOAT64_SUM),
    "coincheung/mscf": ("bisenetv1", replace(PROTOCOLS["mscf"], crop_hw=CROP_HW), FLOAT64_SUM),
    "stdc/scale_0.5": ("stdc1", PROTOCOLS["ss@0.5"], FLOAT64_SUM),
    "stdc/scale_0.75": ("stdc1", PROTOCOLS["ss@0.75"], FLOAT64_SUM),
}


def network(side: Any, name: str, classifier: Path) -> Any:
    """The network of the recorded runs, in float64."""
    side.backend.set_default_dtype("float64")
    model = side.models.build_model(name, classes=19)
    shapes = {key: array.shape for key, array in side.backend.state_arrays(model).items()}
    arrays = {key: rules.weight(key, shape) for key, shape in shapes.items()}
    with np.load(classifier) as stored:
        arrays[CLASSIFIER] = stored[CLASSIFIER]
    side.backend.load_arrays(model, arrays)
    model.eval()
    return model


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {}


SLOW = ("coincheung/msf", "coincheung/mscf")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES]
)
def test_equals_the_public_evaluator(
    side: Any, golden: Path, networks: dict[str, Any], case: str
) -> None:
    system, _, key = case.partition("/")
    name, protocol, tolerance = CASES[case]
    facts = json.loads((golden / f"eval/{system}.json").read_text())
    expected = facts["protocols"][key]
    image = cv2.cvtColor(cv2.imread(str(golden / "eval/image.png")), cv2.COLOR_BGR2RGB)
    label = cv2.imread(str(golden / "eval/label.png"), cv2.IMREAD_UNCHANGED)
    h, w = expected.get("input_hw", label.shape)
    image, label = image[:h, :w], label[:h, :w]
    if name not in networks:
        networks[name] = network(side, name, golden / f"eval/{system}_classifier.npz")
    x = ((image / 255 - np.array(facts["mean"])) / np.array(facts["std"])).transpose(2, 0, 1)
    x = side.backend.to_tensor(np.ascontiguousarray(x)[None])
    scorer = side.evaluate.Scorer(networks[name], protocol=protocol)
    found = side.backend.to_numpy(scorer.scores(x, size_hw=label.shape))[0]

    with np.load(golden / f"eval/{system}_{key}.npz") as stored:
        score, argmax, hist = stored["score"], stored["argmax"], stored["hist"]
        near_tie = np.unpackbits(stored["near_tie"], axis=-1)[:, :w].astype(bool)
    assert found.shape == tuple(expected["score_shape"])
    np.testing.assert_allclose(found[:, ::9, ::9], score, rtol=0, atol=tolerance * score.max())
    np.testing.assert_allclose(found.sum(), expected["score_sum"], rtol=tolerance)
    prediction = found.argmax(axis=0)
    np.testing.assert_array_equal(prediction[~near_tie], argmax[~near_tie])
    counts = confusion_matrix(prediction, label.astype(int), classes=19, ignore_index=255)[:19]
    assert np.abs(counts - hist).sum() <= 2 * near_tie.sum()
    np.testing.assert_array_equal(counts.sum(axis=1), hist.sum(axis=1))
    predicted = side.backend.to_numpy(scorer.predict(x, size_hw=label.shape))
    np.testing.assert_array_equal(predicted[0], prediction)


# ---- by hand: a "network" whose logits are the picture itself --------------------------------
class Echo:
    """Returns its input as logits, and remembers the size of every input."""

    def __init__(self) -> None:
        self.inputs: list[tuple[int, int, int]] = []

    def __call__(self, image: Any) -> dict[str, Any]:
        N, _, H, W = image.shape
        self.inputs.append((int(N), int(H), int(W)))
        return {"main": image}


def scored(side: Any, model: Any, image: np.ndarray, protocol: Protocol, **options: Any) -> Any:
    scorer = side.evaluate.Scorer(model, protocol=protocol, **options)
    x = side.backend.to_tensor(image)
    return side.backend.to_numpy(scorer.scores(x, size_hw=image.shape[2:]))


@pytest.fixture(params=["host", "device"])
def place(side: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: summed by NumPy, and by the operations that another device needs."""
    if request.param == "device":
        monkeypatch.setattr(side.evaluate, "host_view", lambda _tensor: None)
    return request.param


def picture(n: int, h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h).standard_normal((n, 3, h, w))


WINDOWS = Protocol("test", "", crop_hw=(4, 6), stride_rate=0.5, rule="logits")
"""On 6 x 11 pixels: rows 0, 2 and columns 0, 3, 5."""
ROWS_SEEN = np.array([1, 1, 2, 2, 1, 1])
COLUMNS_SEEN = np.array([1, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1])


@pytest.mark.usefixtures("place")
def test_overlaps_are_summed_or_averaged(side: Any) -> None:
    image = picture(2, 6, 11)
    seen = ROWS_SEEN[:, None] * COLUMNS_SEEN
    found = scored(side, Echo(), image, WINDOWS)
    np.testing.assert_allclose(found, image * seen, rtol=1e-14)
    found = scored(side, Echo(), image, replace(WINDOWS, overlap="mean"))
    np.testing.assert_allclose(found, image, rtol=1e-14)


@pytest.mark.usefixtures("place")
def test_mirror_images_are_mirrored_back_and_added(side: Any) -> None:
    image = picture(1, 5, 8)
    found = scored(side, Echo(), image, PROTOCOLS["flip"])
    np.testing.assert_array_equal(found, 2 * image)

    def columns(x: Any) -> dict[str, Any]:
        # 0, 1, 2, ... from the left of whatever the network is given
        ramp = np.broadcast_to(np.arange(8.0), (1, 3, 5, 8))
        return {"main": side.backend.to_tensor(np.array(ramp)) + 0 * x}

    found = scored(side, columns, image, PROTOCOLS["flip"], max_pixels=1)
    np.testing.assert_array_equal(found, np.full((1, 3, 5, 8), 7.0))


@pytest.mark.usefixtures("place")
def test_the_softmax_of_both_is_added_before_the_exponential(side: Any) -> None:
    logits = np.log(np.array([1.0, 2.0, 5.0]))[None, :, None, None] * np.ones((1, 3, 4, 6))
    protocol = replace(WINDOWS, rule="exp_softmax", flip=True)
    expected = np.exp(2 * np.array([1, 2, 5]) / 8)
    found = scored(side, Echo(), logits, protocol)
    np.testing.assert_allclose(found[0, :, 2, 3], expected, rtol=1e-14)
    found = scored(side, Echo(), logits, replace(protocol, flip=False))
    np.testing.assert_allclose(found[0, :, 2, 3], np.exp(np.array([1, 2, 5]) / 8), rtol=1e-14)
    found = scored(side, Echo(), logits, replace(protocol, rule="softmax"))
    np.testing.assert_allclose(found[0, :, 2, 3], np.array([2, 4, 10]) / 8, rtol=1e-14)


@pytest.mark.usefixtures("place")
def test_a_picture_smaller_than_the_window_lies_on_zeros(side: Any) -> None:
    image = picture(1, 3, 4)
    seen: list[np.ndarray] = []

    def watch(x: Any) -> dict[str, Any]:
        seen.append(side.backend.to_numpy(x))
        return {"main": x}

    found = scored(side, watch, image, WINDOWS)
    np.testing.assert_array_equal(found, image)
    expected = np.zeros((1, 3, 4, 6))
    expected[:, :, 0:3, 1:5] = image
    np.testing.assert_array_equal(seen, [expected])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("max_pixels", [1, 150, 10**6])
def test_every_pixel_is_computed_once_and_in_bounded_batches(
    side: Any, name: str, max_pixels: int
) -> None:
    protocol = PROTOCOLS[name]
    if protocol.crop_hw is not None:
        protocol = replace(protocol, crop_hw=(5, 7))
    if name == "ss@720x960":
        protocol = replace(protocol, start=StartSize(shape_hw=(7, 9)))
    image = picture(2, 9, 12)
    model = Echo()
    found = scored(side, model, image, protocol, max_pixels=max_pixels)
    assert all(n == 1 or n * h * w <= max_pixels for n, h, w in model.inputs)
    expected: dict[tuple[int, int], int] = {}
    for h, w, times in protocol.passes(9, 12):
        expected[h, w] = expected.get((h, w), 0) + 2 * times
    pictures: dict[tuple[int, int], int] = {}
    for n, h, w in model.inputs:
        pictures[h, w] = pictures.get((h, w), 0) + n
    assert pictures == expected
    alone = [scored(side, Echo(), image[i : i + 1], protocol, max_pixels=1) for i in range(2)]
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=1e-12)


@pytest.mark.parametrize("name", ["ss", "msf", "mscf", "flip"])
def test_the_host_and_a_device_give_the_same_scores(
    side: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = PROTOCOLS[name]
    if protocol.crop_hw is not None:
        protocol = replace(protocol, crop_hw=(32, 64))
    model = side.models.build_model("stdc1", classes=19, aux_heads=False)
    model.eval()
    image = picture(2, 64, 96).astype(np.float32)
    on_host = scored(side, model, image, protocol)
    monkeypatch.setattr(side.evaluate, "host_view", lambda _tensor: None)
    on_device = scored(side, model, image, protocol)
    assert on_host.dtype == on_device.dtype == np.float32
    np.testing.assert_allclose(on_host, on_device, rtol=0, atol=2e-6 * np.abs(on_device).max())


def test_a_picture_is_brought_to_the_label_s_size(side: Any) -> None:
    image = np.zeros((1, 3, 4, 4))
    image[0, 1, :, 2:] = 9.0
    # class 1 has 0, 0, 9, 9 from the left; corners aligned, 0, 0, 0, 4.5, 9, 9, 9 on seven columns
    x = side.backend.to_tensor(image)
    scorer = side.evaluate.Scorer(Echo(), protocol=NONE)
    found = side.backend.to_numpy(scorer.predict(x, size_hw=(7, 7)))
    assert found.shape == (1, 7, 7)
    assert found[0, 3].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_evaluation_counts_under_the_protocol_and_keeps_the_mode(side: Any) -> None:
    model = side.models.build_model("stdc1", classes=3)
    model.train()
    rng = np.random.default_rng(3)
    image = rng.standard_normal((2, 3, 32, 64)).astype(np.float32)
    label = rng.integers(0, 3, (2, 32, 64))
    label[:, :4] = 255
    batch = {"image": side.backend.to_tensor(image), "label": side.backend.to_tensor(label)}
    protocol = replace(PROTOCOLS["mscf"], crop_hw=(32, 32), scales=(0.5, 1.0))
    options: dict[str, Any] = {"classes": 3, "ignore_index": 255}
    matrix = side.evaluate.evaluate(model, [batch], protocol=protocol, **options).matrix()
    assert model.training
    model.eval()
    scorer = side.evaluate.Scorer(model, protocol=protocol)
    prediction = side.backend.to_numpy(scorer.predict(batch["image"], size_hw=(32, 64)))
    expected = confusion_matrix(prediction, label, **options)
    np.testing.assert_array_equal(matrix, expected)
    plain = side.evaluate.evaluate(model, [batch], **options).matrix()
    with side.backend.no_grad():
        logits = side.backend.to_numpy(model(batch["image"])["main"])
    np.testing.assert_array_equal(plain, confusion_matrix(logits.argmax(1), label, **options))
    assert not model.training
