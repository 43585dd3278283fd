"""VisualDL and TensorBoard, read back from the files that they write."""

import struct
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.errors import InputError
from common.sinks import open_sinks

PICTURE = np.zeros((4, 6, 3), np.uint8)
PICTURE[:, :3] = (250, 10, 90)


def write_something(folder: Path, **options: bool) -> None:
    (sink,) = open_sinks(folder, **options)
    sink.scalar("loss/total", 1.5, 10)
    sink.scalar("loss/total", 0.5, 20)
    sink.image("prediction", PICTURE, 20)
    sink.close()


def decoded(content: bytes) -> Any:
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[..., ::-1]


def test_none_is_opened_unasked(tmp_path: Path) -> None:
    assert open_sinks(tmp_path, use_vdl=False, use_tensorboard=False) == []
    assert list(tmp_path.iterdir()) == []


def test_visualdl_holds_what_was_shown(tmp_path: Path) -> None:
    visualdl = pytest.importorskip("visualdl", reason="VisualDL is optional")
    write_something(tmp_path, use_vdl=True, use_tensorboard=False)
    (path,) = (tmp_path / "vdl").iterdir()
    reader = visualdl.LogReader(file_path=str(path))
    rows = reader.get_data("scalar", "loss/total")
    assert [(row.id, row.value) for row in rows] == [(10, 1.5), (20, 0.5)]
    (row,) = reader.get_data("image", "prediction")
    assert row.id == 20
    np.testing.assert_array_equal(decoded(row.image.encoded_image_string), PICTURE)


def test_tensorboard_holds_what_was_shown(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is optional")
    from tensorboardX.proto.event_pb2 import Event

    write_something(tmp_path, use_vdl=False, use_tensorboard=True)
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, values = path.read_bytes(), []
    while content:
        # TFRecord: length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        values += [(event.step, value) for value in event.summary.value]
        content = content[16 + length :]
    scalars = [(step, v.tag, v.simple_value) for step, v in values if not v.HasField("image")]
    assert scalars == [(10, "loss/total", 1.5), (20, "loss/total", 0.5)]
    ((step, image),) = [(step, v) for step, v in values if v.HasField("image")]
    assert (step, image.tag) == (20, "prediction")
    np.testing.assert_array_equal(decoded(image.image.encoded_image_string), PICTURE)


@pytest.mark.parametrize(
    ("options", "package"),
    [
        ({"use_vdl": True, "use_tensorboard": False}, "visualdl"),
        ({"use_vdl": False, "use_tensorboard": True}, "tensorboardX"),
    ],
)
class TestBoth:
    """What holds for either package."""

    def test_a_missing_package_is_told(
        self,
        options: dict[str, bool],
        package: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"install it with `pip install {package}`"):
            open_sinks(tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_told(
        self, options: dict[str, bool], package: str, tmp_path: Path
    ) -> None:
        pytest.importorskip(package, reason=f"{package} is optional")
        (tmp_path / "output").write_text("")
        with pytest.raises(InputError, match="cannot be made"):
            open_sinks(tmp_path / "output", **options)

    @pytest.mark.parametrize(
        "picture",
        [np.zeros((4, 6, 3)), np.zeros((3, 4, 6), np.uint8), np.zeros((4, 6), np.uint8)],
    )
    def test_only_pictures_of_bytes_are_taken(
        self, options: dict[str, bool], package: str, picture: Any, tmp_path: Path
    ) -> None:
        pytest.importorskip(package, reason=f"{package} is optional")
        (sink,) = open_sinks(tmp_path, **options)
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
            sink.image("x", picture, 1)
        sink.close()
