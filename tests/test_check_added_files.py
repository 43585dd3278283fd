"""tools/check_added_files.py, as pre-commit calls it."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "check_added_files.py"


def check(*paths: Path) -> tuple[int, str]:
    command = [sys.executable, str(TOOL), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a line\n", ""),
        (b"", ""),
        (b"windows\r\n", ""),
        (b"no end", "does not end with a newline"),
        (b"blank \n", "white space at the end of a line"),
        (b"tab\t\r\n", "white space at the end of a line"),
        (b"\0binary without newline ", ""),
        (b"\0" * (250 * 1024), ""),
        (b"\0" * (250 * 1024 + 1), "256001 bytes; expected at most 256000"),
    ],
)
def test_one_file(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    code, text = check(path)
    assert code == (1 if expected else 0)
    assert text == "" if not expected else f"{path}: " in text
    assert expected in text


def test_every_problem_of_every_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("fine\n")
    (tmp_path / "bad").write_text("blank \nno end")
    code, text = check(tmp_path / "good", tmp_path / "bad")
    assert code == 1
    assert len(text.splitlines()) == 2
    assert "good" not in text
