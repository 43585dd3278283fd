"""Files that are complete or absent, and digests."""

import hashlib
import stat
from pathlib import Path

import pytest

from common.errors import InputError
from common.files import atomic_path, file_digest, scratch_folder, tree_digest, write_text


def test_what_is_written_is_there_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.log"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["a.log"]


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    write_text(path, "a long old text\n")
    write_text(path, "new\n")
    assert path.read_text() == "new\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_in_the_middle_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.log"
    write_text(path, "old\n")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    # permissions do not stop root; a regular file in the way stops everyone
    blocker = tmp_path / "file"
    blocker.write_text("")
    for path in (blocker / "a.log", blocker / "deep" / "a.log"):
        with pytest.raises(InputError, match=r"cannot write .*a\.log: .*choose another folder"):
            write_text(path, "text")
    for folder in (blocker, blocker / "deep"):
        with (
            pytest.raises(InputError, match=r"cannot write .*file.*choose another folder"),
            scratch_folder(folder, prefix="x."),
        ):
            raise AssertionError("not reached")


@pytest.mark.parametrize("error", [None, RuntimeError, SystemExit])
def test_a_scratch_folder_is_removed_with_its_content(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    def use() -> None:
        with scratch_folder(tmp_path / "out", prefix="records.") as folder:
            assert folder.parent == tmp_path / "out"
            assert folder.name.startswith("records.")
            write_text(folder / "deep" / "a.txt", "text")
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert list((tmp_path / "out").iterdir()) == []


def test_two_scratch_folders_do_not_meet(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, prefix="x.") as one, scratch_folder(tmp_path, prefix="x.") as two:
        assert one != two


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(path).startswith("ba7816bf8f01cfea414140de5dae2223")
    large = bytes(range(256)) * 9000
    path.write_bytes(large)
    assert file_digest(path) == hashlib.sha256(large).hexdigest()


def test_the_digest_of_a_tree_sees_names_and_contents(tmp_path: Path) -> None:
    root = tmp_path / "here" / "package"
    (root / "sub").mkdir(parents=True)
    (root / "a.py").write_text("1")
    (root / "sub" / "b.py").write_text("2")
    first = tree_digest([root])
    (root / "notes.txt").write_text("not code")
    assert tree_digest([root]) == first
    (root / "a.py").write_text("3")
    changed = tree_digest([root])
    assert changed != first
    (root / "a.py").write_text("1")
    (root / "sub" / "b.py").rename(root / "sub" / "c.py")
    assert tree_digest([root]) not in (first, changed)
    # the place on the machine does not count
    (root / "sub" / "c.py").rename(root / "sub" / "b.py")
    moved = tmp_path / "there" / "package"
    moved.parent.mkdir()
    root.rename(moved)
    assert tree_digest([moved]) == first
