"""Checkpoints of a few known bytes, saved into a store, and whether they are found whole."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.checkpoint_store import Checkpoint, CheckpointStore


def contents(iteration: int) -> dict[str, bytes]:
    return {"model.bin": b"model %d " % iteration * 50, "state.json": b'{"i": %d}' % iteration}


def writers(files: Mapping[str, bytes]) -> dict[str, Callable[[Path], None]]:
    def writer(content: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with path.open("wb", buffering=0) as stream:
                half = len(content) // 2
                stream.write(content[:half])
                sys.audit("test.chunk")
                stream.write(content[half:])

        return write

    return {name: writer(content) for name, content in files.items()}


def save(store: CheckpointStore, iteration: int, **options: Any) -> Path:
    files = writers(contents(iteration))
    return store.save(iteration, files, meta={"epoch": iteration // 100}, **options)


def save_best(store: CheckpointStore, iteration: int) -> Path:
    files = writers(contents(iteration))
    return store.save_best(iteration, files, miou=iteration / 1000, meta={"epoch": 1})


def check_whole(checkpoint: Checkpoint | None) -> int:
    """Compare a checkpoint's bytes with what was written for its iteration; return that."""
    assert checkpoint is not None
    read = {name: path.read_bytes() for name, path in checkpoint.files.items()}
    assert read == contents(checkpoint.iteration)
    return checkpoint.iteration


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in (store.folder / "checkpoints").iterdir())


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
