"""The fixed tensors exercise what they are made for."""

import numpy as np
import pytest

from fake_data.tensors import VOID, fixed_batch, loss_cases, metric_cases

CLASSES = 19


@pytest.mark.parametrize(("n", "h", "w"), [(2, 64, 64), (4, 64, 128), (1, 32, 32), (3, 33, 47)])
@pytest.mark.parametrize("classes", [2, 11, 19, 150])
@pytest.mark.parametrize("seed", [0, 1])
def test_batch_holds_every_class_void_and_borders(n, h, w, classes, seed) -> None:
    images, labels = fixed_batch(seed, n, h, w, classes)
    assert images.shape == (n, 3, h, w)
    assert images.dtype == np.float64
    assert labels.shape == (n, h, w)
    assert labels.dtype == np.int64
    assert set(np.unique(labels)) == {*range(classes), VOID}
    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    assert across.any()
    assert down.any()
    # borders between two classes, not only between a class and void
    assert (across & (labels[:, :, 1:] != VOID) & (labels[:, :, :-1] != VOID)).any()
    assert abs(images.mean()) < 0.8
    assert 0.6 < images.std() < 1.4


def test_batch_depends_on_the_seed_only() -> None:
    first, again, other = (fixed_batch(s, 2, 16, 16, 3) for s in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_too_small_for_the_classes() -> None:
    with pytest.raises(ValueError, match="cannot hold 19 classes"):
        fixed_batch(0, 1, 4, 4, 19)


def pixel_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross entropy of the valid pixels."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    n, y, x = np.nonzero(labels != VOID)
    return -log_probability[n, labels[n, y, x], y, x]


def test_loss_regimes() -> None:
    cases = loss_cases(3, 2, CLASSES, 64, 96)
    hard = {}
    for name, (logits, labels) in cases.items():
        assert logits.shape == (2, CLASSES, 64, 96)
        assert logits.dtype == np.float64
        assert labels.dtype == np.int64
        hard[name] = float(np.sum(pixel_losses(logits, labels) > -np.log(0.7)))
    valid = {name: int((labels != VOID).sum()) for name, (_, labels) in cases.items()}
    pixels = 2 * 64 * 96
    assert hard["mostly_hard"] > 0.9 * valid["mostly_hard"]
    # fewer hard pixels than OHEM keeps at least, but some
    assert 0 < hard["mostly_easy"] < valid["mostly_easy"] // 16
    assert 0 < valid["heavy_void"] < 0.4 * pixels
    assert valid["heavy_void"] // 16 < hard["heavy_void"] < 0.7 * valid["heavy_void"]
    assert (cases["one_image_void"][1][1] == VOID).all()
    assert (cases["one_image_void"][1][0] != VOID).any()
    assert valid["all_void"] == 0
    assert valid["mostly_hard"] < pixels


def test_metric_cases_hold_what_they_promise() -> None:
    cases = metric_cases(0, classes=CLASSES)
    prediction, label = cases["all_classes"]
    assert set(np.unique(label)) == {*range(CLASSES), VOID}
    assert set(np.unique(prediction)) == set(range(CLASSES))
    right = (prediction == label)[label != VOID].mean()
    assert 0.5 < right < 0.95

    prediction, label = cases["absent_classes"]
    assert not {CLASSES - 1, CLASSES - 3} & set(np.unique(label))
    assert CLASSES - 2 in label
    assert not {CLASSES - 1, CLASSES - 2} & set(np.unique(prediction))
    on_void = prediction == CLASSES - 3
    assert on_void.any()
    assert (label[on_void] == VOID).all()


def test_a_float32_counter_cannot_hold_the_large_case() -> None:
    prediction, label = metric_cases(0, classes=CLASSES)["beyond_2_24"]
    hits = int(((prediction == 0) & (label == 0)).sum())
    assert hits == 17_000_017
    assert hits > 2**24
    assert float(np.float32(hits)) != hits
    assert ((prediction != label) & (label != VOID)).any()
    assert (label == VOID).any()
    assert 0 <= prediction.min() <= prediction.max() < CLASSES


def test_too_few_classes_for_the_metric_cases() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        metric_cases(0, classes=4)
