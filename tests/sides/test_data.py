"""Dataset and loaders, written once for both sides: what arrives does not depend on the side."""

import multiprocessing
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config_sections import DataConfig
from common.datasets import load_samples, read_sample
from common.errors import DataError
from common.sampling import SampleKey, sample_rng, train_batches
from common.transforms import train_transform, val_transform
from fake_data.scenes import generate

CLASSES = 19
SIZE = (48, 96)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "s", seed=1, train=5, val=5, size_hw=SIZE)


def config(root: Path, **changes: Any) -> DataConfig:
    usual = {
        **{"dataset": "cityscapes", "root": root, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.2, 0.2)},
        **{"crop_hw": (32, 64), "batch_size": 2, "scale_range": (0.5, 2.0), "workers": 0},
        **{"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4)},
    }
    return DataConfig(**{**usual, **changes})


def arrays(side: Any, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return (
        side.backend.to_numpy(batch["image"]),
        side.backend.to_numpy(batch["label"]),
        list(batch["name"]),
    )


def train(side: Any, data: DataConfig, **changes: Any) -> list[Any]:
    request = {"classes": CLASSES, "seed": 9, "iterations": 6, **changes}
    return [arrays(side, batch) for batch in side.data.train_loader(data, **request)]


def assert_same(actual: list[Any], expected: list[Any]) -> None:
    assert len(actual) == len(expected) > 0
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[2] == theirs[2]


def dataset(side: Any, data: DataConfig, **changes: Any) -> Any:
    request = {"classes": CLASSES, "ignore_index": 255, "transform": val_transform(data)}
    return side.data.SegmentationDataset(load_samples(data, "train"), **{**request, **changes})


def test_item_is_the_transformed_sample(side: Any, root: Path) -> None:
    data = config(root)
    item = dataset(side, data, transform=train_transform(data), seed=9)[SampleKey(2, 3)]
    sample = load_samples(data, "train")[3]
    image, label = read_sample(sample, classes=CLASSES, ignore_index=255)
    image, label = train_transform(data)(image, label, sample_rng(9, key=SampleKey(2, 3)))
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["label"], label)
    assert item["name"] == sample.name
    assert (item["image"].dtype, item["label"].dtype) == (np.float32, np.int64)


def test_augmentation_depends_on_seed_epoch_and_index(side: Any, root: Path) -> None:
    data = config(root)
    first = dataset(side, data, transform=train_transform(data), seed=1)
    other = dataset(side, data, transform=train_transform(data), seed=2)
    keys = [SampleKey(epoch, index) for epoch in range(2) for index in range(2)]
    images = [d[key]["image"].tobytes() for d in (first, other) for key in keys]
    assert len(set(images)) == 8
    assert first[keys[0]]["image"].tobytes() == images[0]


def test_batches_hold_the_samples_of_the_keys(side: Any, root: Path) -> None:
    data = config(root)
    batches = train(side, data)
    keys = train_batches(
        *(5,), batch_size=2, world_size=1, rank=0, seed=9, start_iteration=0, iterations=6
    )
    items = dataset(side, data, transform=train_transform(data), seed=9)
    for (image, label, names), batch in zip(batches, keys, strict=True):
        assert (image.dtype, label.dtype) == (np.float32, np.int64)
        assert image.shape == (2, 3, 32, 64)
        for i, key in enumerate(batch):
            np.testing.assert_array_equal(image[i], items[key]["image"])
            np.testing.assert_array_equal(label[i], items[key]["label"])
            assert names[i] == items[key]["name"]


# Torch warns when there are more workers than cores; here only the order matters
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(side: Any, root: Path, workers: int) -> None:
    data = config(root)
    assert_same(train(side, data, workers=workers), train(side, data))


def test_ranks_share_the_batches_of_one(side: Any, root: Path) -> None:
    whole = train(side, config(root))
    ranks = [train(side, config(root, batch_size=1), world_size=2, rank=rank) for rank in range(2)]
    joined = [
        (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), a[2] + b[2])
        for a, b in zip(*ranks, strict=True)
    ]
    assert_same(joined, whole)


def test_resuming_goes_on(side: Any, root: Path) -> None:
    data = config(root)
    assert_same(train(side, data, start_iteration=4), train(side, data)[4:])
    loader = side.data.train_loader(data, classes=CLASSES, seed=9, iterations=6, start_iteration=4)
    assert len(loader) == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_every_sample_once(
    side: Any, root: Path, world_size: int, workers: int
) -> None:
    data = config(root)
    names: list[str] = []
    for rank in range(world_size):
        loader = side.data.val_loader(
            data, classes=CLASSES, world_size=world_size, rank=rank, workers=workers
        )
        batches = [arrays(side, batch) for batch in loader]
        assert len(batches) == len(loader)
        assert all(batch[0].shape == (1, 3, *SIZE) for batch in batches)
        names += [name for batch in batches for name in batch[2]]
    assert sorted(names) == [sample.name for sample in load_samples(data, "val")]


def test_validation_can_be_repeated_and_batched(side: Any, root: Path) -> None:
    loader = side.data.val_loader(config(root), classes=CLASSES, batch_size=2)
    first, second = ([arrays(side, batch) for batch in loader] for _ in range(2))
    assert [len(batch[2]) for batch in first] == [2, 2, 1]
    assert_same(second, first)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_a_sample_arrives_as_it_is(
    side: Any, root: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    loader = side.data.val_loader(config(root), classes=CLASSES, workers=workers)
    label = load_samples(config(root), "val")[2].label
    content = label.read_bytes()
    label.write_bytes(content[: len(content) // 2])
    try:
        seen = []
        with pytest.raises(DataError) as error:
            seen.extend(batch["name"][0] for batch in loader)
    finally:
        label.write_bytes(content)
    assert str(error.value) == (
        f"{label}: truncated PNG, its end is missing; copy or download it again"
    )
    assert len(seen) == 2  # the samples before it have come
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_our_own_errors_arrive_with_their_traceback(
    side: Any, root: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug in a transform")

    monkeypatch.setattr(side.data, "read_sample", broken)
    loader = side.data.val_loader(config(root), classes=CLASSES, workers=workers)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*KeyError: 'a bug in a transform'"):
        list(loader)


def test_pictures_of_different_sizes_in_one_batch(side: Any, root: Path, tmp_path: Path) -> None:
    other = generate(tmp_path / "other", train=1, val=1, size_hw=(32, 64))
    lines = []
    for folder in (root, other):
        sample = load_samples(config(folder), "val")[0]
        lines.append(f"{sample.image},{sample.label}")
    (tmp_path / "val.txt").write_text("\n".join(lines))
    data = config(tmp_path, val_list="val.txt")
    loader = side.data.val_loader(data, classes=CLASSES, batch_size=2)
    with pytest.raises(DataError, match=r"different sizes.*48, 96.*32, 64.*use batch size 1"):
        list(loader)
    assert len(list(side.data.val_loader(data, classes=CLASSES))) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_loop_may_stop_early(side: Any, root: Path, workers: int) -> None:
    loader = side.data.train_loader(
        config(root), classes=CLASSES, seed=0, iterations=10_000, workers=workers
    )
    for _ in range(2):
        for batch in loader:
            assert len(batch["name"]) == 2
            break


def test_loaders_may_start_while_others_work(side: Any, root: Path) -> None:
    """A process forked while a thread holds a lock of the framework would wait for ever."""
    data = config(root, workers=2)
    training = iter(side.data.train_loader(data, classes=CLASSES, seed=0, iterations=100))
    for _ in range(6):
        next(training)
        assert len(list(side.data.val_loader(data, classes=CLASSES))) == 5


def test_a_signal_to_all_processes_leaves_the_workers_alone(side: Any, root: Path) -> None:
    """Also where a library starts a thread in them before any code of ours: it takes no signal."""
    armed = [True]

    def start_thread() -> None:
        if armed:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    os.register_at_fork(after_in_child=start_thread)
    # those of a loader that was left early end in their own time
    others = set(multiprocessing.active_children())
    try:
        loader = side.data.train_loader(
            config(root), classes=CLASSES, seed=0, iterations=10_000, workers=1
        )
        batches = iter(loader)
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - others
        # not from this process, which is the one that may end them
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        # more than were fetched ahead
        for _ in range(20):
            next(batches)
        assert worker.is_alive()
    finally:
        armed.clear()
