"""Finding, reading and checking samples; the oracle of the tables is cityscapesscripts."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from common.classes import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_TRAIN_IDS,
    CITYSCAPES_VOID_IDS,
    colourise,
    label_table,
)
from common.config_sections import DataConfig
from common.datasets import Sample, detect_encodings, load_samples, read_sample
from common.errors import DataError
from common.images import read_image, read_label


def data_config(root: Path, dataset: str = "list", **changes) -> DataConfig:
    lists = {"train_list": "train.txt", "val_list": "val.txt"} if dataset == "list" else {}
    usual = {"mean": (0, 0, 0), "std": (1, 1, 1), "crop_hw": (4, 4), "batch_size": 1}
    return DataConfig(dataset=dataset, root=root, **{**usual, **lists, **changes})


def write(path: Path, pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(pixels, np.uint8) if not isinstance(pixels, np.ndarray) else pixels
    assert cv2.imwrite(str(path), array)
    return path


def sample(root: Path, label, *, encoding="train_ids", image=None) -> Sample:
    label = np.asarray(label, np.uint8)
    picture = np.zeros((*label.shape, 3), np.uint8) if image is None else image
    return Sample(
        write(root / "image.png", picture), write(root / "label.png", label), "x", encoding
    )


# ---- tables -------------------------------------------------------------------------------------
def test_cityscapes_table_is_the_official_one() -> None:
    evaluated = {row.id: row for row in official_labels if row.trainId not in (255, -1)}
    assert {row.id: row.trainId for row in evaluated.values()} == CITYSCAPES_TRAIN_IDS
    void = {row.id % 256 for row in official_labels if row.trainId in (255, -1)}
    assert void == set(CITYSCAPES_VOID_IDS)
    by_train_id = sorted(evaluated.values(), key=lambda row: row.trainId)
    assert tuple(row.name for row in by_train_id) == CITYSCAPES.names
    assert tuple(row.color for row in by_train_id) == CITYSCAPES.palette


def test_camvid_table_is_that_of_the_data(real_data: Path) -> None:
    assert tuple((real_data / "camvid" / "classes.txt").read_text().split()) == CAMVID.names
    assert len(set(CAMVID.palette)) == 11


@pytest.mark.parametrize("ignore_index", [255, 200])
def test_raw_ids_become_train_ids(ignore_index: int) -> None:
    table = label_table("label_ids", classes=19, ignore_index=ignore_index)
    raw = np.array([[7, 8, 26, 33], [0, 29, 30, 255]], np.uint8)  # 255: license plate, id -1
    void = ignore_index
    assert table.to_train_ids(raw).tolist() == [[0, 1, 13, 18], [void, void, void, void]]
    assert table.wrong_values(np.array([[34, 33, 254, 0]], np.uint8)) == [34, 254]


def test_train_ids_are_kept() -> None:
    table = label_table("train_ids", classes=19, ignore_index=255)
    every = np.array([[*range(19), 255]], np.uint8)
    np.testing.assert_array_equal(table.to_train_ids(every), every)
    assert table.wrong_values(np.array([[18, 19, 255, 26]], np.uint8)) == [19, 26]


def test_void_of_train_ids_becomes_ignore_index() -> None:
    table = label_table("train_ids", classes=3, ignore_index=100)
    assert table.to_train_ids(np.array([[0, 2, 100, 255]], np.uint8)).tolist() == [[0, 2, 100, 100]]


def test_raw_ids_need_19_classes() -> None:
    with pytest.raises(DataError, match="19 classes, but the model has 11"):
        label_table("label_ids", classes=11, ignore_index=255)


def test_colours_of_classes_and_void() -> None:
    picture = colourise(np.array([[0, 18, 255, -1]]), CITYSCAPES.palette)
    assert picture.tolist() == [[[128, 64, 128], [119, 11, 32], [0, 0, 0], [0, 0, 0]]]


# ---- discovery ----------------------------------------------------------------------------------
def cityscapes_file(root: Path, kind: str, city: str, number: int) -> Path:
    stem = f"{city}_{number:06d}_000019"
    if kind == "image":
        return root / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png"
    return root / "gtFine" / "val" / city / f"{stem}_gtFine_{kind}.png"


def test_cityscapes_layout_is_searched_and_sorted(tmp_path: Path) -> None:
    for city, number in (("ulm", 3), ("aachen", 2), ("aachen", 1)):
        write(cityscapes_file(tmp_path, "image", city, number), np.zeros((2, 2, 3), np.uint8))
        write(cityscapes_file(tmp_path, "labelIds", city, number), [[7, 7], [7, 7]])
    samples = load_samples(data_config(tmp_path, "cityscapes"), "val")
    assert [s.name for s in samples] == [
        "leftImg8bit/val/aachen/aachen_000001_000019_leftImg8bit",
        "leftImg8bit/val/aachen/aachen_000002_000019_leftImg8bit",
        "leftImg8bit/val/ulm/ulm_000003_000019_leftImg8bit",
    ]
    assert {s.encoding for s in samples} == {"label_ids"}
    assert samples[2].label == cityscapes_file(tmp_path, "labelIds", "ulm", 3)


def test_cityscapes_with_converted_labels_only(tmp_path: Path) -> None:
    write(cityscapes_file(tmp_path, "image", "ulm", 1), np.zeros((2, 2, 3), np.uint8))
    write(cityscapes_file(tmp_path, "labelTrainIds", "ulm", 1), [[13, 255], [0, 18]])
    (only,) = load_samples(data_config(tmp_path, "cityscapes"), "val")
    assert only.encoding == "train_ids"
    _, label = read_sample(only, classes=19, ignore_index=255)
    assert label.tolist() == [[13, 255], [0, 18]]


@pytest.mark.parametrize("separator", [",", ", ", " ", "\t", "   "])
def test_list_separators_keep_order(tmp_path: Path, separator: str) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
        write(tmp_path / f"{name}_label.png", [[0]])
    lines = [f"{name}.png{separator}{name}_label.png" for name in ("b", "a")]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n\n")
    samples = load_samples(data_config(tmp_path), "train")
    assert [s.name for s in samples] == ["b", "a"]


def test_comma_list_may_have_blanks_in_names_and_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "my picture.png", np.zeros((2, 2, 3), np.uint8))
    write(tmp_path / "my label.png", [[0]])
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfmy picture.png,my label.png\r\n")
    (only,) = load_samples(data_config(tmp_path), "train")
    assert only.label == tmp_path / "my label.png"


def test_camvid_lists_are_found_in_the_root(real_data: Path) -> None:
    config = data_config(real_data / "camvid", "camvid")
    train, val = load_samples(config, "train"), load_samples(config, "val")
    assert (len(train), len(val)) == (367, 101)
    assert val[0].name == "images/val/0016E5_07959"
    image, label = read_sample(val[0], classes=11, ignore_index=255)
    assert (image.shape, label.shape) == ((360, 480, 3), (360, 480))
    assert set(np.unique(label)) <= {*range(11), 255}


# ---- raw ids or train ids? ----------------------------------------------------------------------
def test_names_tell_the_encoding() -> None:
    files = [Path("a_gtFine_labelIds.png"), Path("b_gtFine_labelTrainIds.png")]
    assert detect_encodings(files) == ["label_ids", "train_ids"]


def test_values_tell_the_encoding(tmp_path: Path) -> None:
    raw = [write(tmp_path / "r1.png", [[7, 8]]), write(tmp_path / "r2.png", [[7, 26]])]
    mapped = [write(tmp_path / "t1.png", [[0, 13]]), write(tmp_path / "t2.png", [[18, 255]])]
    assert detect_encodings(raw) == ["label_ids", "label_ids"]
    assert detect_encodings(mapped) == ["train_ids", "train_ids"]
    named = tmp_path / "z_labelIds.png"
    assert detect_encodings([*mapped, named]) == ["train_ids", "train_ids", "label_ids"]


def test_license_plates_do_not_hide_raw_ids(tmp_path: Path) -> None:
    assert detect_encodings([write(tmp_path / "a.png", [[26, 255]])]) == ["label_ids"]


def test_mixed_encodings_without_names_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.png", [[26, 7]]), write(tmp_path / "b.png", [[13, 255]])]
    with pytest.raises(DataError, match=r"a\.png holds raw Cityscapes ids, but .*b\.png train ids"):
        detect_encodings(files)


def test_a_cityscapes_list_of_train_ids_is_not_mapped_again(tmp_path: Path) -> None:
    label = [[0, 2], [10, 255]]  # mapped again: void everywhere
    write(tmp_path / "i.png", np.zeros((2, 2, 3), np.uint8))
    write(tmp_path / "l.png", label)
    (tmp_path / "train.txt").write_text("i.png,l.png")
    (only,) = load_samples(data_config(tmp_path, "cityscapes", train_list="train.txt"), "train")
    assert read_sample(only, classes=19, ignore_index=255)[1].tolist() == label


# ---- reading ------------------------------------------------------------------------------------
def test_image_is_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("bits", "colours"), [(1, 2), (2, 4), (4, 16), (8, 200)])
def test_palette_labels_are_indices(tmp_path: Path, bits: int, colours: int) -> None:
    indices = (np.arange(7 * 13).reshape(7, 13) * 3 % colours).astype(np.uint8)
    picture = Image.fromarray(indices, "L")
    picture.putpalette([(37 * i + 5) % 256 for i in range(3 * colours)])
    picture.save(tmp_path / "p.png", bits=bits)
    np.testing.assert_array_equal(read_label(tmp_path / "p.png"), indices)


def test_grey_labels_are_unchanged(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(read_label(write(tmp_path / "g.png", values)), values)


def test_16_bit_labels_within_a_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "g.png", np.array([[3, 255]], np.uint16))
    assert read_label(path).tolist() == [[3, 255]]
    path = write(tmp_path / "g.png", np.array([[3, 256]], np.uint16))
    with pytest.raises(DataError, match=r"g\.png: the label has value 256"):
        read_label(path)


# ---- errors -------------------------------------------------------------------------------------
def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        load_samples(data_config(tmp_path / "nowhere"), "train")


def test_missing_cityscapes_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit.train: no such folder.*data\.train_list"):
        load_samples(data_config(tmp_path, "cityscapes"), "train")
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="expected at least one"):
        load_samples(data_config(tmp_path, "cityscapes"), "train")


def test_missing_cityscapes_label(tmp_path: Path) -> None:
    write(cityscapes_file(tmp_path, "image", "ulm", 1), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"1 of 1 files do not exist: .*_gtFine_labelIds\.png"):
        load_samples(data_config(tmp_path, "cityscapes"), "val")


def test_missing_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt: no such list file.*set data\.train_list"):
        load_samples(data_config(tmp_path), "train")
    with pytest.raises(DataError, match=r"data\.val_list is not set"):
        load_samples(data_config(tmp_path, val_list=None), "val")


@pytest.mark.parametrize("line", ["only.png", "only.png,", "a.png,b.png,c.png", "a b c"])
def test_malformed_line_names_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.txt").write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=r"train\.txt:2: expected an image and a label"):
        load_samples(data_config(tmp_path), "train")


def test_empty_list(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"train\.txt: the list is empty"):
        load_samples(data_config(tmp_path), "train")


def test_missing_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n".join(f"{i}.png,{i}_l.png" for i in range(3)))
    with pytest.raises(DataError, match=r"6 of 6 files do not exist: .*0\.png.* and 3 more"):
        load_samples(data_config(tmp_path), "train")


def test_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.97, -1, -13])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_picture(tmp_path: Path, kept: float, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    content = write(tmp_path / f"t{suffix}", noise).read_bytes()
    end = int(kept) if kept < 0 else int(kept * len(content))
    (tmp_path / f"t{suffix}").write_bytes(content[:end])
    with pytest.raises(DataError, match=rf"t\{suffix}: "):
        read_image(tmp_path / f"t{suffix}")


def test_corrupt_png(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "c.png", np.zeros((40, 60, 3), np.uint8)).read_bytes())
    content[content.index(b"IDAT") + 12] ^= 1
    (tmp_path / "c.png").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.png: corrupt PNG, wrong checksum in chunk IDAT"):
        read_image(tmp_path / "c.png")


def test_png_without_pixels(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")
    (tmp_path / "e.png").write_bytes(content)
    with pytest.raises(DataError, match=r"e\.png: not a picture"):
        read_label(tmp_path / "e.png")


def test_no_picture_at_all(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"t\.png: not a picture"):
        read_image(tmp_path / "t.png")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


def test_colour_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"l\.png: the label has 3 channels; expected one"):
        read_label(write(tmp_path / "l.png", np.zeros((2, 2, 3), np.uint8)))


def test_sizes_differ(tmp_path: Path) -> None:
    wrong = sample(tmp_path, [[0, 0]], image=np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"label\.png: the label is 1x2 .*image\.png is 2x2"):
        read_sample(wrong, classes=2, ignore_index=255)


def test_label_out_of_range_hints_at_label_ids(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"label\.png: 2 pixels have label value 26, 33; expected 0\.\.18 or 255\. "
        r"Raw Cityscapes labelIds\?",
    ):
        read_sample(sample(tmp_path, [[26, 33, 0]]), classes=19, ignore_index=255)


def test_label_out_of_range_that_is_no_raw_id(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"label value 200; expected 0\.\.1 or 255\. Set model"):
        read_sample(sample(tmp_path, [[200, 0]]), classes=2, ignore_index=255)
    with pytest.raises(DataError, match=r"label value 34; expected raw Cityscapes ids 0\.\.33"):
        read_sample(sample(tmp_path, [[34, 0]], encoding="label_ids"), classes=19, ignore_index=255)
