"""A pair of one's own through the command line: as laid it passes, broken it is told where."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, bisenet

from pipeline.new_model import lay_files

TINY = [
    "--set", "verify.image_hw=[32,64]",
    "--set", "verify.train_iters=6",
    "--set", "verify.train_iters_float32=4",
    "--set", "verify.check_every=2",
    "--set", "verify.train_warmup_iters=2",
    "--set", "schedule.max_iters=600",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the drawn scenes are kept below it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with the files as they are laid."""
    lay_files("own_net", tmp_path / "own_net")
    return tmp_path / "own_net"


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new))


def verify(home: Path, config: Path, *words: object) -> tuple[int, dict[str, Any], str]:
    out = config.parent / "logs"
    code, shown, told = bisenet(
        home, "verify", "--config", config, "--out", out, "--json", "--keep-going", *TINY, *words
    )
    return code, json.loads(shown) if shown else {}, told


def starts(summary: dict[str, Any]) -> dict[str, str]:
    """Return step and dtype -> where it starts to differ, of those that fail."""
    rows = [row for row in summary["results"] if row["verdict"] != "PASS"]
    return {f"{row['step']} {row['dtype']}": row["starts_at"] or row["message"] for row in rows}


@pytest.mark.slow
def test_the_laid_files_pass_every_step(home: Path, pair: Path) -> None:
    code, summary, _ = verify(home, pair / "own_net.yml")
    assert starts(summary) == {}
    assert (code, summary["verdict"]) == (0, "PASS")
    assert len(summary["results"]) == 13
    # the logs tell the pair, without the folders of the machine
    written = "".join(path.read_text() for path in (pair / "logs").glob("*.*"))
    assert "torch_model.py:OwnNet" in written
    assert str(pair) not in written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "step", "place"),
    [
        ("stride=stride, padding=1", "stride=stride, padding=0", "forward float64",
         "layer down2.conv (eval)"),
        ("self.relu = nn.ReLU()", "self.relu = nn.LeakyReLU(0.01)", "forward float64",
         "layer down2.relu (eval)"),
        ("self.bn = BatchNorm2d(", "self.bn = nn.BatchNorm2D(", "backward float64",
         "buffer down2.bn.running_mean"),
        ("nn.Dropout(0.1)", "nn.Dropout(0.5)", "lr_schedule float64",
         "options of dropout/dropout/p"),
    ],
)  # fmt: skip
def test_a_broken_line_of_the_port_is_told_by_its_place(
    home: Path, pair: Path, old: str, new: str, step: str, place: str
) -> None:
    replace(pair / "paddle_model.py", old, new)
    code, summary, _ = verify(home, pair / "own_net.yml", "--steps", step.partition(" ")[0])
    assert code == 1
    assert starts(summary)[step] == place


@pytest.mark.slow
def test_layers_of_other_names_are_missing_until_they_are_mapped(home: Path, pair: Path) -> None:
    port, config = pair / "paddle_model.py", pair / "own_net.yml"
    port.write_text(port.read_text().replace("self.classifier", "self.cls"))
    code, summary, _ = verify(home, config, "--steps", "forward")
    assert code == 1
    assert starts(summary)["forward float64"] == "layer classifier (eval)"
    words = ["--set", "model.pair.names={classifier: cls}", "--steps", "forward,backward,optimizer"]
    code, summary, _ = verify(home, config, *words)
    assert (code, starts(summary)) == (0, {})


@pytest.mark.slow
def test_what_both_recorders_refuse_is_one_message(home: Path, pair: Path) -> None:
    words = ["--set", "model.options={wide: 3}", "--steps", "lr_schedule"]
    code, _, told = verify(home, pair / "own_net.yml", *words)
    assert code == 2
    assert "torch recorder: torch_model.py:OwnNet has the arguments (classes: 'int', *, " in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_fast_scnn_passes_every_step(home: Path, tmp_path: Path) -> None:
    """The finished example of docs/add_a_model.md, at the smallest sizes."""
    out = tmp_path / "logs"
    example = ROOT / "examples" / "fast_scnn" / "fast_scnn.yml"
    code, shown, told = bisenet(
        home, "verify", "--config", example, "--out", out, "--json", "--keep-going", *TINY
    )
    assert starts(json.loads(shown)) == {}, told
    assert code == 0
