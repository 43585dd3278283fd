"""Reading pictures and label maps from files, with every broken file an error that names it.

cv2 alone is not enough: OpenCV 4 fills what a truncated file lacks and only warns on stderr, and
every version turns the indices of a palette PNG into colours (or grey), which corrupts labels.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PALETTE = 3
"""PNG colour type of a picture whose pixels are indices into a palette."""
_GREY_BYTES = bytes([8, 0, 0, 0, 0])
"""The end of a PNG's header: 8 bits, grey, the only compression and filter method, rows in order"""
_COLOR_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
"""Since OpenCV 4.11: decodes in our order of channels, which saves a pass over the picture."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 RGB picture in a file; a grey one has three equal channels.

    Raises:
        DataError: no such file, truncated, corrupt or not a picture.
    """
    content = checked_bytes(path)
    if _COLOR_RGB is not None:
        return _decode(content, _COLOR_RGB, path)
    image = _decode(content, cv2.IMREAD_COLOR, path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_label(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 label map in a file, its values (or palette indices) unchanged.

    Raises:
        DataError: as read_image; or more than one channel, or a value above 255.
    """
    content = checked_bytes(path)
    depth = 8
    if content.startswith(_PNG_SIGNATURE) and content[25] == _PALETTE:
        content, depth = _without_palette(content)
    label = _decode(content, cv2.IMREAD_UNCHANGED, path)
    if label.ndim != 2:
        raise DataError(
            f"{path}: the label has {label.shape[2]} channels; expected one, holding a class "
            f"number per pixel. A colour picture of the classes? Give the file of class numbers"
        )
    if label.max(initial=0) > 255:
        raise DataError(f"{path}: the label has value {label.max()}; expected 0..255")
    # a grey PNG of 1, 2 or 4 bits is spread over 0..255 when it is read
    return label if depth == 8 and label.dtype == np.uint8 else _narrowed(label, depth)


def picture_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of a picture file by its header alone; whether it is whole is not told.

    Raises:
        DataError: no such file, or its beginning is that of no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow's own decoders raise SyntaxError for a broken header
        raise DataError(f"{path}: not a picture ({error})") from None


def has_colours(path: Path) -> bool:
    """Tell whether a picture file has several channels; a palette's indices are one.

    Raises:
        DataError: as read_image.
    """
    content = checked_bytes(path)
    if content.startswith(_PNG_SIGNATURE) and content[25] == _PALETTE:
        return False
    return _decode(content, cv2.IMREAD_UNCHANGED, path).ndim == 3


def _narrowed(label: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    return np.asarray(label // (255 // (2**depth - 1)), np.uint8)


def label_png(label: NDArray[np.uint8]) -> bytes:
    """Return the (H, W) uint8 label as a PNG that is quick to write and to read.

    Rows are stored as they are (filter 0), runs of equal values packed: a quarter of the time of
    Pillow's encoder, files of the same size, and a third less time to decode.
    """
    H, W = label.shape
    rows = np.zeros((H, W + 1), np.uint8)
    rows[:, 1:] = label
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = packer.compress(rows.data) + packer.flush()
    header = struct.pack(">II", W, H) + _GREY_BYTES
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b""))
    return b"".join((_PNG_SIGNATURE, *chunks))


def checked_bytes(path: Path) -> bytes:
    """Return the content of a picture file that is there as a whole; it is not decoded.

    Raises:
        DataError: no such file, empty, truncated, or a PNG with a wrong checksum.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not content:
        raise DataError(f"{path}: the file is empty; copy or download it again")
    if content.startswith(_PNG_SIGNATURE):
        problem = _png_problem(content)
    elif content.startswith(_JPEG_START):
        complete = content.rfind(_JPEG_END) > content.rfind(_JPEG_SCAN)
        problem = "" if complete else "truncated JPEG, its end marker is missing"
    else:
        problem = ""
    if problem:
        raise DataError(f"{path}: {problem}; copy or download it again")
    return content


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield (type, body, stored CRC) of each chunk; struct.error or a short body at the end."""
    # slices of a view are no copies
    view = memoryview(content)
    position = len(_PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, position)
        (crc,) = struct.unpack_from(">I", content, position + 8 + length)
        yield kind, view[position + 8 : position + 8 + length], crc
        position += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", crc)))


def _png_problem(content: bytes) -> str:
    if content[12:16] != b"IHDR":
        return "truncated or corrupt PNG, its header is missing"
    try:
        for kind, body, crc in _png_chunks(content):
            if zlib.crc32(body, zlib.crc32(kind)) != crc:
                return f"corrupt PNG, wrong checksum in chunk {kind.decode('latin-1')}"
    except struct.error:
        return "truncated PNG, its end is missing"
    return ""


def _without_palette(content: bytes) -> tuple[bytes, int]:
    """Return a palette PNG rewritten as a grey one of the same samples, and its bit depth."""
    rewritten = [_PNG_SIGNATURE]
    depth = content[24]
    for kind, view, _ in _png_chunks(content):
        body = bytes(view)
        if kind == b"IHDR":
            body = body[:9] + b"\x00" + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            rewritten.append(_chunk(kind, body))
    return b"".join(rewritten), depth


def _decode(content: bytes, flags: int, path: Path) -> NDArray[Any]:
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from None
    if picture is None:
        raise DataError(f"{path}: not a picture that OpenCV can decode; expected PNG or JPEG")
    return picture
