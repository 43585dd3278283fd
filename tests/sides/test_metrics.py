from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from common.iou import confusion_matrix

VOID = 255


@pytest.fixture(params=["host", "device"])
def place(side: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: counted by NumPy, and by the operations that another device needs."""
    if request.param == "device":
        monkeypatch.setattr(side.metrics, "host_view", lambda _tensor: None)
    return request.param


def counted(side: Any, prediction: Any, label: Any, *, classes: int) -> Any:
    confusion = side.metrics.ConfusionMatrix(classes=classes, ignore_index=VOID)
    to_tensor = side.backend.to_tensor
    confusion.update(to_tensor(np.asarray(prediction)), to_tensor(np.asarray(label)))
    return confusion


@pytest.mark.usefixtures("place")
def test_counts_by_hand_over_two_updates(side: Any) -> None:
    label = np.array([[[0, 0, 1], [1, VOID, VOID]]])
    prediction = np.array([[[0, 1, 1], [0, 0, 1]]])
    confusion = counted(side, prediction, label, classes=2)
    to_tensor = side.backend.to_tensor
    confusion.update(to_tensor(prediction[:, :1]), to_tensor(label[:, :1]))
    matrix = confusion.matrix()
    assert matrix.dtype == np.int64
    # rows: label 0, label 1, void
    assert matrix.tolist() == [[2, 2], [1, 2], [1, 1]]


def test_nothing_counted_is_all_zero(side: Any) -> None:
    matrix = side.metrics.ConfusionMatrix(classes=3, ignore_index=VOID).matrix()
    assert (matrix.dtype, matrix.shape, matrix.any()) == (np.int64, (4, 3), False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_of_tied_scores_is_predicted(side: Any, dtype: Any) -> None:
    scores = np.zeros((1, 5, 1, 3), dtype=dtype)
    scores[0, [1, 3], 0, 0] = 2.0
    scores[0, [2, 4], 0, 1] = 1.0
    label = np.zeros((1, 1, 3), dtype=np.int64)
    matrix = counted(side, scores, label, classes=5).matrix()
    assert matrix[0].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integer_dtype_is_counted(side: Any, dtype: Any) -> None:
    label = np.array([[[1, VOID]]], dtype=np.uint8)
    prediction = np.array([[[1, 2]]], dtype=dtype)
    matrix = counted(side, prediction, label, classes=3).matrix()
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.usefixtures("place")
def test_more_pixels_than_float32_can_count(side: Any) -> None:
    # a float32 counter stays at 2**24 when one is added
    already = np.zeros((3, 2), dtype=np.int64)
    already[1, 1] = 2**24
    confusion = side.metrics.ConfusionMatrix(classes=2, ignore_index=VOID)
    confusion.merge(already)
    one = side.backend.to_tensor(np.array([[[1]]]))
    confusion.update(one, one)
    confusion.merge(np.full((3, 2), 2**40, dtype=np.int64))
    assert confusion.matrix()[1, 1] == 2**40 + 2**24 + 1


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("pair", ["all_classes", "absent_classes", "uneven_images"])
def test_equals_the_golden_counts(side: Any, golden: Path, pair: str) -> None:
    with np.load(golden / "metrics/metrics.npz") as arrays:
        prediction, label = arrays[f"{pair}/pred"], arrays[f"{pair}/label"]
        expected = arrays[f"{pair}/confusion_label_by_pred"]
    matrix = counted(side, prediction, label, classes=19).matrix()
    np.testing.assert_array_equal(matrix[:19], expected)
    assert matrix.sum() == label.size
    np.testing.assert_array_equal(matrix[19], np.bincount(prediction[label == VOID], minlength=19))


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((1, 4, 1, 1)), [[[0]]], r"scores have shape \(1, 4, 1, 1\); expected \(N, 3, H"),
        (np.zeros((1, 1, 1)), [[[0]]], "A class map must have an integer dtype"),
        ([[[0, 1]]], [[[0]]], r"prediction has shape \(1, 1, 2\); expected the label's"),
        ([[[-1]]], [[[1]]], r"prediction has values -1\.\.-1; expected 0\.\.2"),
        ([[[3]]], [[[0]]], r"prediction has values 3\.\.3; expected 0\.\.2"),
        ([[[0]], [[0]]], [[[0]], [[7]]], r"sample 1 of the batch has label value 7; expected 0"),
    ],
)
def test_what_cannot_be_counted_is_named(
    side: Any, prediction: Any, label: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        counted(side, prediction, label, classes=3)


def test_a_matrix_of_other_classes_is_not_merged(side: Any) -> None:
    confusion = side.metrics.ConfusionMatrix(classes=3, ignore_index=VOID)
    with pytest.raises(DataError, match=r"shape \(3, 2\) and dtype int64; expected \(4, 3\)"):
        confusion.merge(np.zeros((3, 2), dtype=np.int64))


@pytest.mark.parametrize(("prediction", "label"), [(-1, 1), (3, 0), (0, 7), (0, -1)])
def test_a_device_reports_at_the_end_what_cannot_be_counted(
    side: Any, monkeypatch: pytest.MonkeyPatch, prediction: int, label: int
) -> None:
    monkeypatch.setattr(side.metrics, "host_view", lambda _tensor: None)
    confusion = counted(side, [[[0, prediction]]], [[[0, label]]], classes=3)
    with pytest.raises(DataError, match=r"1 pixels could not be counted: expected labels 0\.\.2"):
        confusion.matrix()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("ignore_index", [3, 254, 4095, 4096, 2**40])
def test_any_void_value_is_counted_apart(side: Any, ignore_index: int) -> None:
    confusion = side.metrics.ConfusionMatrix(classes=3, ignore_index=ignore_index)
    to_tensor = side.backend.to_tensor
    label = np.array([[[0, ignore_index, 2, ignore_index]]])
    confusion.update(to_tensor(np.array([[[1, 2, 2, 0]]])), to_tensor(label))
    assert confusion.matrix().tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 1]]


@pytest.mark.usefixtures("place")
def test_a_block_keeps_images_apart_whatever_their_size(side: Any) -> None:
    rng = np.random.default_rng(1)
    block = side.metrics.ImageBlock(classes=3, ignore_index=VOID)
    predictions = [rng.integers(0, 3, size) for size in ((4, 6), (5, 3), (2, 2))]
    labels = [rng.integers(0, 3, prediction.shape) for prediction in predictions]
    labels[1][:2] = VOID
    to_tensor = side.backend.to_tensor
    for prediction, label in zip(predictions, labels, strict=True):
        block.add(to_tensor(prediction), to_tensor(label))
    assert len(block) == 3
    for found, prediction, label in zip(block.matrices(), predictions, labels, strict=True):
        expected = confusion_matrix(prediction, label, classes=3, ignore_index=VOID)
        np.testing.assert_array_equal(found, expected)
    chosen = block.predictions([2, 0])
    assert [found.dtype for found in chosen] == [np.uint8, np.uint8]
    np.testing.assert_array_equal(chosen[0], predictions[2])
    np.testing.assert_array_equal(chosen[1], predictions[0])
    assert block.predictions([]) == []


def test_a_device_is_read_once_for_a_block(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []

    def read(tensor: Any) -> Any:
        reads.append(tuple(tensor.shape))
        return side.backend.to_numpy(tensor)

    monkeypatch.setattr(side.metrics, "host_view", lambda _tensor: None)
    monkeypatch.setattr(side.metrics, "to_numpy", read)
    block = side.metrics.ImageBlock(classes=3, ignore_index=VOID)
    one = side.backend.to_tensor(np.ones((4, 6), dtype=np.int64))
    for _ in range(5):
        block.add(one, one)
    assert reads == []
    assert [int(matrix[1, 1]) for matrix in block.matrices()] == [24] * 5
    assert reads == [(5, 13)]
    block.predictions([1, 3, 4])
    assert reads == [(5, 13), (72,)]


def test_a_block_with_an_image_that_cannot_be_counted_is_refused(
    side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side.metrics, "host_view", lambda _tensor: None)
    block = side.metrics.ImageBlock(classes=3, ignore_index=VOID)
    to_tensor = side.backend.to_tensor
    block.add(to_tensor(np.array([[0, 1]])), to_tensor(np.array([[0, 1]])))
    block.add(to_tensor(np.array([[0, 1]])), to_tensor(np.array([[0, 7]])))
    with pytest.raises(DataError, match="1 pixels could not be counted"):
        block.matrices()
