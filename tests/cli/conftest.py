"""The command line in this process, where mistakes are found before a recorder starts."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import SIGNALS, Mistake

from pipeline import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: generated scenes are kept below it."""
    return tmp_path_factory.mktemp("cwd")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what cli.main does with signals."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def mistake(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Mistake:
    """Run a command that must end with 2 and one message; return the message."""
    monkeypatch.chdir(folder)

    def run(*words: object, command: str = "verify") -> str:
        line = [command, *words] if "--out" in words else [command, *words, "--out", tmp_path / "o"]
        monkeypatch.setattr(sys, "argv", ["bisenet", *map(str, line)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        assert caught.value.code == 2
        assert "Traceback" not in out + err
        assert out == ""
        assert not list(tmp_path.glob("o/*.log"))
        return err

    return run
