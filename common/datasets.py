"""Finding the samples of a data set and reading one of them.

Source: the layout of the Cityscapes packages, and the `image,label` lists of CoinCheung/BiSeNet.
Departure: which values a label file holds (raw ids or train ids) is found out and kept with the
sample. Reading train ids as raw ids maps road, building and sky to void without any error, which
has spoilt whole trainings of that repository's users and of its Paddle port.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.classes import COCO_STUFF_GAPS, LAST_RAW_ID, VOID, LabelEncoding, label_table
from common.config_sections import DataConfig
from common.errors import DataError
from common.images import read_image, read_label

Split = Literal["train", "val"]

_IMAGE_SUFFIX = "_leftImg8bit.png"
_LABEL_SUFFIXES: dict[str, LabelEncoding] = {
    "_labelids.png": "label_ids",
    "_labeltrainids.png": "train_ids",
}
_ENCODINGS: dict[str, LabelEncoding] = {"coco_stuff": "coco_stuff_ids", "ade20k": "ade20k_ids"}
"""Data sets whose label files hold ids of their own, always the same ones."""
_LAST_TRAIN_ID = 18
_PROBED_FILES = 16
_SHOWN_FILES = 3


@dataclass(frozen=True)
class Sample:
    """One image with its label file."""

    image: Path
    label: Path
    name: str
    """Image path relative to the data root, without suffix; unique in a data set."""
    encoding: LabelEncoding = "train_ids"
    """What the values in the label file mean."""


def load_samples(data: DataConfig, split: Split, *, missing_ok: bool = False) -> list[Sample]:
    """Return the samples of a split, in the order of its list or, without a list, sorted.

    Args:
        data: which data set, where, and the lists if it has any.
        split: ``train`` or ``val``.
        missing_ok: return samples whose files do not exist too, for a check of the whole.

    Raises:
        DataError: a folder, list or file is missing; a list line is malformed or the list empty.
    """
    if not data.root.is_dir():
        raise DataError(
            f"{data.root}: no such folder; data.root must be the folder of the {data.dataset} data"
        )
    listed = data.train_list if split == "train" else data.val_list
    if listed is None and data.dataset == "cityscapes":
        return _cityscapes_samples(data.root, split, missing_ok=missing_ok)
    if listed is None and data.dataset == "list":
        raise DataError(f"data.{split}_list is not set; a data set of kind 'list' needs it")
    path = _list_path(data.root, listed or Path(f"{split}.txt"), split)
    pairs = _read_list(path, data.root)
    if not missing_ok:
        _check_files([file for pair in pairs for file in pair], origin=str(path))
    encodings: list[LabelEncoding] = [_ENCODINGS.get(data.dataset, "train_ids")] * len(pairs)
    if data.dataset == "cityscapes":
        encodings = detect_encodings([label for _, label in pairs], skip_broken=missing_ok)
    return [
        Sample(image, label, _name(image, data.root), encoding)
        for (image, label), encoding in zip(pairs, encodings, strict=True)
    ]


def read_sample(
    sample: Sample, *, classes: int, ignore_index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one sample.

    Args:
        sample: from load_samples.
        classes: number of classes of the network.
        ignore_index: value of void in the result.

    Returns:
        The (H, W, 3) uint8 RGB image and the (H, W) uint8 label of train ids and ignore_index.

    Raises:
        DataError: a file is missing or broken, sizes differ, or a label value is out of range.
    """
    image = read_image(sample.image)
    label = read_label(sample.label)
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{sample.label}: the label is {label.shape[0]}x{label.shape[1]} (H x W), its image "
            f"{sample.image} is {image.shape[0]}x{image.shape[1]}; expected the same size"
        )
    table = label_table(sample.encoding, classes=classes, ignore_index=ignore_index)
    wrong = table.wrong_values(label)
    if wrong:
        raise DataError(_wrong_values_text(sample, label, wrong, classes))
    return image, table.to_train_ids(label)


def detect_encodings(labels: Sequence[Path], *, skip_broken: bool = False) -> list[LabelEncoding]:
    """Return what each Cityscapes label file holds: by its name, else by values of several files.

    Args:
        labels: the files.
        skip_broken: judge by the files that can be read.

    Raises:
        DataError: some of the files without a telling name hold raw ids and others train ids.
    """
    unnamed = [label for label in labels if _encoding_by_name(label) is None]
    by_values = _encoding_by_values(unnamed, skip_broken=skip_broken)
    return [_encoding_by_name(label) or by_values for label in labels]


def _encoding_by_name(label: Path) -> LabelEncoding | None:
    name = label.name.lower()
    return next((kind for end, kind in _LABEL_SUFFIXES.items() if name.endswith(end)), None)


def _encoding_by_values(labels: Sequence[Path], *, skip_broken: bool) -> LabelEncoding:
    # the files are spread over the list; consecutive ones often show the same street
    count = min(_PROBED_FILES, len(labels))
    probed = [labels[i * len(labels) // count] for i in range(count)]
    with_raw_ids: list[Path] = []
    with_train_ids: list[Path] = []
    for path in probed:
        try:
            present = np.flatnonzero(np.bincount(read_label(path).ravel(), minlength=256))
        except DataError:
            if not skip_broken:
                raise
            continue
        # 19..33 (vegetation, sky, person, car, ...) are no train ids; 255 is void in train ids,
        # and in raw ids at most the rare license plate beside a car
        if np.any((present > _LAST_TRAIN_ID) & (present <= LAST_RAW_ID)):
            with_raw_ids.append(path)
        elif VOID in present:
            with_train_ids.append(path)
    if with_raw_ids and with_train_ids:
        raise DataError(
            f"{with_raw_ids[0]} holds raw Cityscapes ids, but {with_train_ids[0]} train ids; "
            f"give all labels of a list in one encoding, or name the files *_labelIds.png and "
            f"*_labelTrainIds.png"
        )
    return "label_ids" if with_raw_ids else "train_ids"


def _cityscapes_samples(root: Path, split: Split, *, missing_ok: bool) -> list[Sample]:
    folder = root / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.root must hold Cityscapes' leftImg8bit and gtFine "
            f"folders, or give data.{split}_list"
        )
    images = sorted(folder.glob(f"*/*{_IMAGE_SUFFIX}"))
    if not images:
        raise DataError(f"{folder}: no file matches <city>/*{_IMAGE_SUFFIX}; expected at least one")
    samples = [_cityscapes_sample(image, root, split) for image in images]
    if not missing_ok:
        _check_files([sample.label for sample in samples], origin=str(folder))
    return samples


def _cityscapes_sample(image: Path, root: Path, split: Split) -> Sample:
    folder = root / "gtFine" / split / image.parent.name
    stem = image.name.removesuffix(_IMAGE_SUFFIX)
    raw = folder / f"{stem}_gtFine_labelIds.png"
    mapped = folder / f"{stem}_gtFine_labelTrainIds.png"
    # the labelIds files are part of the official package, the others are made from them
    if not raw.is_file() and mapped.is_file():
        return Sample(image, mapped, _name(image, root), "train_ids")
    return Sample(image, raw, _name(image, root), "label_ids")


def _list_path(root: Path, listed: Path, split: Split) -> Path:
    for path in (root / listed, listed):
        if path.is_file():
            return path
    raise DataError(
        f"{listed}: no such list file, neither in {root} nor in the current folder; "
        f"set data.{split}_list"
    )


def _read_list(path: Path, root: Path) -> list[tuple[Path, Path]]:
    pairs: list[tuple[Path, Path]] = []
    # utf-8-sig: a list saved by a Windows editor starts with a byte-order mark
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = list_fields(line)
        if len(fields) != 2 or not all(fields):
            raise DataError(
                f"{path}:{number}: expected an image and a label, separated by a comma or blank, "
                f"got {line.strip()!r}"
            )
        pairs.append((root / fields[0], root / fields[1]))
    if not pairs:
        raise DataError(f"{path}: the list is empty; expected one `image,label` per line")
    return pairs


def list_fields(line: str) -> list[str]:
    """Return the fields of a line of a list: separated by a comma, else a tab, else blanks."""
    # the first separator found decides, so that a comma-separated path may contain blanks
    for separator in (",", "\t"):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return re.split(r"\s+", line.strip())


def _check_files(files: Sequence[Path], *, origin: str) -> None:
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        shown = ", ".join(missing[:_SHOWN_FILES])
        rest = f" and {len(missing) - _SHOWN_FILES} more" if len(missing) > _SHOWN_FILES else ""
        raise DataError(
            f"{origin}: {len(missing)} of {len(files)} files do not exist: {shown}{rest}; "
            f"check data.root"
        )


def _name(image: Path, root: Path) -> str:
    inside = image.relative_to(root) if image.is_relative_to(root) else image
    return inside.with_suffix("").as_posix()


def _wrong_values_text(
    sample: Sample, label: NDArray[np.uint8], wrong: list[int], classes: int
) -> str:
    values = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
    count = int(np.isin(label, wrong).sum())
    text = f"{sample.label}: {count} pixels have label value {values}; expected "
    if sample.encoding == "label_ids":
        return text + f"raw Cityscapes ids 0..{LAST_RAW_ID} or {VOID}"
    if sample.encoding == "coco_stuff_ids":
        gaps = ", ".join(map(str, COCO_STUFF_GAPS))
        return text + f"0..181 without {gaps}, or {VOID}: the stuffthingmaps files as published"
    if sample.encoding == "ade20k_ids":
        return text + "0..150, 0 for void: the annotations of ADEChallengeData2016 as published"
    hint = (
        "Raw Cityscapes labelIds? Set data.dataset to cityscapes; files named *_labelIds.png are "
        "then mapped"
        if max(wrong) <= LAST_RAW_ID
        else "Set model.classes to the number of classes and map other values to void"
    )
    return text + f"0..{classes - 1} or {VOID}. {hint}"
