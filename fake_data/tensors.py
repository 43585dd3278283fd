"""Fixed tensors for single steps: images with labels, logits with labels, predictions with labels.

They are made to exercise the code: every class, void, borders inside a picture, hard and easy
pixels, classes that are absent, counts beyond 2^24. The tests say so.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = 255
_CELLS = (8, 4, 2, 1)
"""Sides in pixels of the squares of one class, tried until the labels hold every class."""
_LARGE_HW = (1024, 1024)
_LARGE_IMAGES = 17

Batch = tuple[NDArray[np.float64], NDArray[np.int64]]
"""(N, 3, H, W) images or (N, C, H, W) logits, and (N, H, W) labels."""


def fixed_batch(seed: int, n: int, h: int, w: int, classes: int) -> Batch:
    """Return images and labels for one training step.

    The colour of a pixel depends on its class, with as much noise, so that gradients carry a
    signal; the values are of the size of a normalised photograph's.

    Args:
        seed: of everything.
        n: images.
        h: height in pixels.
        w: width in pixels.
        classes: number of classes.

    Returns:
        (n, 3, h, w) float64 images, about standard normal, and (n, h, w) int64 labels that hold
        every class and void (255).

    Raises:
        ValueError: fewer pixels than classes.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(n, h, w, classes)))
    labels = _labels_of_all_classes(rng, n, h, w, classes=classes, void=0.08)
    colours = rng.standard_normal((classes + 1, 3))
    base = colours[np.minimum(labels, classes)].transpose(0, 3, 1, 2)
    images = (base + rng.standard_normal((n, 3, h, w))) / np.sqrt(2)
    return np.ascontiguousarray(images), labels


def loss_cases(seed: int, n: int, classes: int, h: int, w: int) -> dict[str, Batch]:
    """Return (n, classes, h, w) float64 logits and (n, h, w) int64 labels per regime.

    mostly_hard: nearly every pixel's loss exceeds the usual threshold; mostly_easy: a few percent
    do, fewer than the 1/16 that OHEM keeps at least; heavy_void: seven tenths are void and the
    rest is mixed; one_image_void: the last image has no label; all_void: none has.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(n, classes, h, w)))
    return {
        "mostly_hard": _loss_case(rng, (n, classes, h, w), void=0.05, easy=0.02, boost=12.0),
        "mostly_easy": _loss_case(rng, (n, classes, h, w), void=0.05, easy=0.97, boost=12.0),
        "heavy_void": _loss_case(rng, (n, classes, h, w), void=0.7, easy=0.6, boost=8.0),
        "one_image_void": _loss_case(
            rng, (n, classes, h, w), void=0.05, easy=0.5, boost=8.0, void_images=slice(-1, None)
        ),
        "all_void": _loss_case(
            rng, (n, classes, h, w), void=0.0, easy=0.5, boost=8.0, void_images=slice(None)
        ),
    }


def metric_cases(
    seed: int, *, classes: int, h: int = 64, w: int = 96
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (N, H, W) int64 predictions and labels; update a metric image by image.

    all_classes: every class labelled and predicted, void present. absent_classes: the last class
    is neither labelled nor predicted, the one before only labelled, the one before that predicted
    on void pixels only. beyond_2_24: an odd number of hits of class 0 above 2^24, which a float32
    counter cannot hold (read-only views of one image, so that it costs 16 MB).

    Raises:
        ValueError: fewer than 5 classes, too few for the absent ones.
    """
    if classes < 5:
        raise ValueError(f"classes is {classes}; expected at least 5")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(classes, h, w)))
    labels = _labels_of_all_classes(rng, 3, h, w, classes=classes, void=0.1)
    noisy = _labels_of_all_classes(rng, 3, h, w, classes=classes, void=0.0)
    usual = np.where((rng.random(labels.shape) < 0.7) & (labels != VOID), labels, noisy)
    return {
        "all_classes": (usual, labels),
        "absent_classes": _absent_classes(rng, usual, labels, classes=classes),
        "beyond_2_24": _beyond_float32(rng, classes=classes),
    }


def _labels_of_all_classes(
    rng: np.random.Generator, n: int, h: int, w: int, *, classes: int, void: float
) -> NDArray[np.int64]:
    """Return (n, h, w) labels in squares; every class occurs, and void unless void is 0."""
    values = [*range(classes), *([VOID] if void else [])]
    # whole squares only are sure to be seen
    cell = next((c for c in _CELLS if n * (h // c) * (w // c) >= 2 * len(values)), 1)
    rows, columns = h // cell, w // cell
    if n * rows * columns < len(values):
        raise ValueError(
            f"{n} images of {h}x{w} cannot hold {classes} classes; expected at least one pixel each"
        )
    cells = rng.integers(0, classes, (n, -(-h // cell), -(-w // cell)))
    cells[rng.random(cells.shape) < void] = VOID
    places = rng.permutation(n * rows * columns)[: len(values)]
    cells[np.unravel_index(places, (n, rows, columns))] = values
    return cells.repeat(cell, 1).repeat(cell, 2)[:, :h, :w]


def _loss_case(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    *,
    void: float,
    easy: float,
    boost: float,
    void_images: slice = slice(0),
) -> Batch:
    n, classes, h, w = shape
    labels = _labels_of_all_classes(rng, n, h, w, classes=classes, void=void)
    logits = rng.standard_normal(shape)
    # the label's own logit is raised at easy pixels, so their loss is near 0
    raised = ((rng.random((n, h, w)) < easy) & (labels != VOID))[:, None]
    logits += boost * (raised & (labels[:, None] == np.arange(classes)[:, None, None]))
    labels[void_images] = VOID
    return logits, labels


def _absent_classes(
    rng: np.random.Generator,
    prediction: NDArray[np.int64],
    label: NDArray[np.int64],
    *,
    classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    absent, on_void = classes - 1, classes - 3
    other = rng.integers(0, on_void, label.shape)
    label = np.where((label == absent) | (label == on_void), other, label)
    prediction = np.where(prediction >= on_void, other, prediction)
    prediction = np.where((label == VOID) & (rng.random(label.shape) < 0.5), on_void, prediction)
    return prediction, label


def _beyond_float32(
    rng: np.random.Generator, *, classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    hits = 1_000_001  # odd, as is the number of images: so is their product, 17,000,017 > 2^24
    label: NDArray[Any] = np.zeros(_LARGE_HW, np.int64)
    rest = label.reshape(-1)[hits:]
    rest[:] = rng.integers(1, classes, rest.shape)
    rest[::10] = VOID
    prediction = np.where(label == VOID, 1, label)
    prediction.reshape(-1)[hits : hits + 1000] = 1
    shape = (_LARGE_IMAGES, *_LARGE_HW)
    return np.broadcast_to(prediction, shape), np.broadcast_to(label, shape)
