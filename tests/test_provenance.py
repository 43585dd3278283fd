"""The digest of the code and the commit, over a small tree made here."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from common import provenance
from common.provenance import CODE_FOLDERS, code_digest, committed_code_digest, git_commit


def make_tree(root: Path) -> None:
    for name in CODE_FOLDERS:
        (root / name).mkdir(parents=True)
        (root / name / "a.py").write_text(f"{name} = 1\n")


def test_the_digest_sees_every_source_file(tmp_path: Path) -> None:
    make_tree(tmp_path)
    expected = hashlib.sha256()
    for name in CODE_FOLDERS:
        expected.update(f"{name}/a.py".encode() + b"\0")
        expected.update(hashlib.sha256(f"{name} = 1\n".encode()).digest())
    assert code_digest(tmp_path) == expected.hexdigest()
    for name in CODE_FOLDERS:
        before = code_digest(tmp_path)
        (tmp_path / name / "a.py").write_text("changed\n")
        assert code_digest(tmp_path) != before
    before = code_digest(tmp_path)
    (tmp_path / "README.md").write_text("said")
    (tmp_path / "common" / "notes.txt").write_text("said")
    assert code_digest(tmp_path) == before


def test_without_a_root_it_is_this_code() -> None:
    assert Path(__file__).resolve().parent.parent == provenance.ROOT
    assert code_digest() == code_digest(provenance.ROOT)
    assert re.fullmatch(r"([0-9a-f]{12}|unknown)(\+changes)?", git_commit())


def test_the_commit_is_marked_when_the_code_differs(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *names, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    make_tree(tmp_path)
    (tmp_path / "common" / "a").mkdir()
    for name in ("a/b.py", "a-b.py"):
        (tmp_path / "common" / name).write_text("x = 1\n")
    assert git_commit(tmp_path) == "unknown"
    assert committed_code_digest("0" * 12, root=tmp_path) == ""
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    commit = git("rev-parse", "HEAD")[:12]
    assert git_commit(tmp_path) == commit
    (tmp_path / "README.md").write_text("not code")
    assert git_commit(tmp_path) == commit
    # a-b.py and a/b.py sort otherwise as texts than as paths
    assert committed_code_digest(commit, root=tmp_path) == code_digest(tmp_path)
    (tmp_path / "common" / "a.py").write_text("changed\n")
    assert committed_code_digest(commit, root=tmp_path) != code_digest(tmp_path)
    assert git_commit(tmp_path) == f"{commit}+changes"


def test_a_machine_without_git_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown"
