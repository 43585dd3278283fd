"""List files: one image and its label per line, relative to the data root.

Source: the lists of CoinCheung/BiSeNet (comma) and those that PaddleSeg's create_dataset_list
writes (any separator, sorted, a newline at the end); for the whole Cityscapes release the latter
have 398,780, 65,900 and 193,690 bytes, as bisenet users' folder listings show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common.datasets import list_fields
from common.errors import DataError
from common.files import write_text
from common.images import picture_size
from common.prepare.jobs import Failure
from common.prepare.report import Report

Pair = tuple[Path, Path]
"""Image and label."""

SEPARATORS = {",": ",", "comma": ",", " ": " ", "space": " ", "\t": "\t", "\\t": "\t", "tab": "\t"}

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
LABEL_SUFFIXES = (".png", ".bmp")
"""Without loss: a JPEG of class numbers holds other numbers."""


def separator_named(name: str) -> str:
    """Return the separator for a word or the character itself.

    Raises:
        DataError: neither comma, space nor tab.
    """
    if name not in SEPARATORS:
        raise DataError(f"separator {name!r}: expected ',' (comma), 'space' or 'tab'")
    return SEPARATORS[name]


def list_text(pairs: Iterable[Pair], *, root: Path, separator: str) -> str:
    """Return the lines of a list, sorted by the image's path.

    Args:
        pairs: image and label files.
        root: the data root that paths are relative to.
        separator: between image and label.

    Raises:
        DataError: a path holds a separator, so that the line could not be read again.
    """
    lines: list[str] = []
    for image, label in pairs:
        fields = [_relative(image, root), _relative(label, root)]
        line = separator.join(fields)
        if list_fields(line) != fields:
            raise DataError(
                f"{image}: the line {line!r} would be read as {list_fields(line)}; rename the "
                f"file or choose another separator"
            )
        lines.append(line + "\n")
    return "".join(sorted(lines))


def write_list(path: Path, pairs: Iterable[Pair], *, root: Path, separator: str) -> int:
    """Write a list, atomically; return its number of lines.

    Raises:
        DataError: as list_text.
        InputError: the folder cannot be written.
    """
    text = list_text(pairs, root=root, separator=separator)
    write_text(path, text)
    return text.count("\n")


def write_lists(
    report: Report, pairs: Mapping[str, Sequence[Pair]], *, out: Path, separator: str
) -> None:
    """Write the list of every split, of the pairs whose sizes agree; report the others.

    A list of an earlier run whose split has no usable pair any more is removed: it would name
    files that are broken now.

    Args:
        report: of the preparation.
        pairs: split -> its images and labels, which are there.
        out: folder of the lists.
        separator: between image and label.

    Raises:
        DataError: a path holds the separator.
        InputError: the folder cannot be written.
    """
    differing: dict[Pair, Failure] = {}
    for pair in dict.fromkeys(pair for files in pairs.values() for pair in files):
        failure = _size_failure(pair)
        if failure is not None:
            differing[pair] = failure
    report.failures += differing.values()
    for split, files in pairs.items():
        path = out / f"{split}.txt"
        usable = [pair for pair in files if pair not in differing]
        if usable:
            report.lists[path.name] = write_list(
                path, usable, root=report.root, separator=separator
            )
        elif path.is_file():
            path.unlink()
            report.notes.append(f"{split}: no usable pair; the list of an earlier run was removed")


def _size_failure(pair: Pair) -> Failure | None:
    """Compare the sizes in the headers, which takes no reading of the whole picture."""
    sizes: list[str] = []
    for path in pair:
        try:
            sizes.append("{}x{}".format(*picture_size(path)))
        except DataError as error:
            return Failure(path, str(error))
    if sizes[0] == sizes[1]:
        return None
    reason = f"{pair[1]}: the label is {sizes[1]} (H x W), its image {sizes[0]}"
    return Failure(pair[1], reason)


def pairs_by_stem(
    images: Path, labels: Path, *, label_end: str = ""
) -> tuple[list[Pair], list[Failure]]:
    """Return the images and labels of the same name, and the files that have no partner.

    Args:
        images: folder of images, searched with its subfolders.
        labels: folder of labels, in the same subfolders.
        label_end: what a label's name has besides the image's, as ``_L``; may be missing.

    Raises:
        DataError: a folder is missing, or holds no picture at all.
    """
    image_files, failures = _by_stem(images, IMAGE_SUFFIXES, end="")
    label_files, more = _by_stem(labels, LABEL_SUFFIXES, end=label_end)
    failures += more
    for stem in sorted(image_files.keys() ^ label_files.keys()):
        if stem in image_files:
            reason = f"no label {stem}{label_end}.png in {labels}"
            failures.append(Failure(image_files[stem], reason))
        else:
            failures.append(Failure(label_files[stem], f"no image {stem}.* in {images}"))
    both = sorted(image_files.keys() & label_files.keys())
    return [(image_files[stem], label_files[stem]) for stem in both], failures


def held_out(pairs: Sequence[Pair], *, fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Return (training, validation) pairs.

    Which are held out depends on the names alone: files that are added later do not move others
    from one part to the other.

    Raises:
        DataError: the fraction is not in [0, 1), or leaves one part empty.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"the validation part is {fraction}; expected at least 0 and less than 1")
    training: list[Pair] = []
    validation: list[Pair] = []
    for pair in pairs:
        digest = hashlib.sha256(pair[0].stem.encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        (validation if share < fraction else training).append(pair)
    if not training or (fraction and not validation):
        raise DataError(
            f"a validation part of {fraction} of {len(pairs)} images leaves {len(training)} for "
            f"training and {len(validation)} for validation; choose another fraction, or give "
            f"folders train and val"
        )
    return training, validation


def _by_stem(
    folder: Path, suffixes: tuple[str, ...], *, end: str
) -> tuple[dict[str, Path], list[Failure]]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    failures: list[Failure] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix().removesuffix(end)
        if stem in files:
            failures.append(Failure(path, f"{files[stem].name} has the same name; expected one"))
        files.setdefault(stem, path)
    if not files:
        raise DataError(f"{folder}: holds no {', '.join(suffixes)} file")
    return files, failures


def _relative(path: Path, root: Path) -> str:
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return Path(os.path.relpath(path, root)).as_posix()
