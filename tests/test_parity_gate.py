"""The gate before a training, on evidence as the pipeline's own report writes it."""

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import evidence
import pytest
import yaml
from evidence import META, write_outcome

from common.config import Config, load_config
from common.errors import ConfigError, ParityError
from common.parity_gate import REQUIRED, check_parity
from common.provenance import CODE_FOLDERS, code_digest
from pipeline.judge import Result
from pipeline.new_model import lay_files
from pipeline.steps import STEPS, step_named
from pipeline.verdicts import Verdict

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CITYSCAPES = CONFIGS / "bisenetv1_cityscapes.yml"
CAMVID = CONFIGS / "bisenetv1_camvid.yml"


def write_evidence(logs: Path, config: Config, *, name: str = CITYSCAPES.stem, **verdicts: Any):
    evidence.write_evidence(logs, config, name=name, **verdicts)


def refusal(config: Config, logs: Path, *, path: Path = CITYSCAPES, **options: Any) -> list[str]:
    """Return the lines of the refusal."""
    with pytest.raises(ParityError) as caught:
        check_parity(path, config, logs=logs, **options)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: no passing, fresh parity evidence for this training"
    assert lines[-2].startswith("make it with:  bisenet verify --config ")
    assert "--skip_parity_check" in lines[-1]
    return [line.strip() for line in lines[1:-2]]


@pytest.fixture
def config() -> Config:
    return load_config(CITYSCAPES)


def test_the_required_steps_are_the_pipelines() -> None:
    assert {step.name: step.dtypes for step in STEPS} == dict(REQUIRED)


def test_passing_fresh_evidence_is_a_proof(tmp_path: Path, config: Config) -> None:
    write_evidence(tmp_path, config)
    proof = check_parity(CITYSCAPES, config, logs=tmp_path)
    summary = tmp_path / CITYSCAPES.stem / "summary.json"
    assert proof.summary == summary
    assert proof.digest == hashlib.sha256(summary.read_bytes()).hexdigest()
    assert proof.device == "cpu"
    assert proof.versions == {"torch": "of torch", "paddle": "of paddle", "numpy": "2.0"}
    assert proof.verify["train_iters"] == 100
    assert proof.commit == json.loads(summary.read_text())["commit"]


def test_evidence_of_a_smaller_run_holds(tmp_path: Path, config: Config) -> None:
    small = ["verify.train_iters=30", "verify.train_iters_float32=10"]
    write_evidence(tmp_path, load_config(CITYSCAPES, overrides=small))
    assert check_parity(CITYSCAPES, config, logs=tmp_path).verify["train_iters"] == 30


@pytest.mark.parametrize(
    "override",
    [
        "train.precision=amp_o1",
        "train.save_interval=7",
        "gpus=8",
        "data.root=elsewhere",
        "data.batch_size=3",
        "data.workers=0",
        "model.backbone_weights=resnet18.safetensors",
    ],
)
def test_it_holds_for_what_no_step_reads(tmp_path: Path, config: Config, override: str) -> None:
    write_evidence(tmp_path, config)
    check_parity(CITYSCAPES, load_config(CITYSCAPES, overrides=[override]), logs=tmp_path)


def test_missing_evidence(tmp_path: Path, config: Config) -> None:
    summary = tmp_path / CITYSCAPES.stem / "summary.json"
    assert refusal(config, tmp_path) == [f"missing: there is no {summary}"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "damaged"),
        ("[]", "stale: .* older version"),
        ('{"verdict": "PASS"}', "stale: .* older version"),
    ],
)
def test_evidence_that_cannot_be_read(
    tmp_path: Path, config: Config, content: str, expected: str
) -> None:
    folder = tmp_path / CITYSCAPES.stem
    folder.mkdir()
    (folder / "summary.json").write_text(content)
    with pytest.raises(ParityError, match=expected):
        check_parity(CITYSCAPES, config, logs=tmp_path)
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()
    with pytest.raises(ParityError, match=r"missing: .* cannot be read"):
        check_parity(CITYSCAPES, config, logs=tmp_path)


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PASS])
def test_failed_evidence(tmp_path: Path, config: Config, verdict: Verdict) -> None:
    write_evidence(tmp_path, config, loss_float32=verdict, training_float64=verdict)
    assert refusal(config, tmp_path) == [
        f"failed: loss (float32) {verdict.value}, training (float64) {verdict.value}"
    ]


def test_a_verdict_that_no_step_explains_is_believed(tmp_path: Path, config: Config) -> None:
    write_evidence(tmp_path, config)
    path = tmp_path / CITYSCAPES.stem / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "verdict": "ERROR"}))
    assert refusal(config, tmp_path) == ["failed: its verdict is ERROR"]


def test_evidence_of_some_steps_is_incomplete(tmp_path: Path, config: Config) -> None:
    results = [Result(step_named("loss"), "float64", Verdict.PASS, meta=META)]
    write_outcome(tmp_path, config, results, name=CITYSCAPES.stem)
    (line,) = refusal(config, tmp_path)
    assert line.startswith("incomplete: not verified were data (float32), forward (float64), ")
    assert "loss (float32)" in line
    assert "loss (float64)" not in line


def test_evidence_of_other_code_is_stale(tmp_path: Path, config: Config) -> None:
    write_evidence(tmp_path / "logs", config)
    other = tmp_path / "other"
    for name in CODE_FOLDERS:
        (other / name).mkdir(parents=True)
        (other / name / "a.py").write_text("")
    (line,) = refusal(config, tmp_path / "logs", root=other)
    assert line.startswith(f"stale: the code has changed since (verified {code_digest()[:12]} ")
    assert line.endswith(f"now {code_digest(other)[:12]})")


def test_evidence_of_another_recipe_tells_the_difference(tmp_path: Path, config: Config) -> None:
    write_evidence(tmp_path, config)
    overrides = ["schedule.max_iters=77777", "loss.head_weights.aux16=0.5"]
    changed = load_config(CITYSCAPES, overrides=overrides)
    (line,) = refusal(changed, tmp_path)
    before = config.schedule.max_iters
    assert line == (
        "other config: verified with another recipe; loss.head_weights.aux16 was null, is 0.5; "
        f"schedule.max_iters was {before}, is 77777"
    )
    # without the resolved configuration beside it, the digest still decides
    (tmp_path / CITYSCAPES.stem / "config.yml").unlink()
    assert refusal(changed, tmp_path) == ["other config: verified with another recipe"]


def test_everything_wrong_is_told(tmp_path: Path, config: Config) -> None:
    write_evidence(tmp_path, config, data_float32=Verdict.FAIL)
    for name in CODE_FOLDERS:
        (tmp_path / "other" / name).mkdir(parents=True)
    changed = load_config(CITYSCAPES, overrides=["eval.count_void=true"])
    lines = refusal(changed, tmp_path, root=tmp_path / "other")
    assert [line.partition(":")[0] for line in lines] == ["failed", "stale", "other config"]


def command_of(path: Path, config: Config, logs: Path) -> list[str]:
    with pytest.raises(ParityError) as caught:
        check_parity(path, config, logs=logs)
    return shlex.split(str(caught.value).splitlines()[-2].removeprefix("make it with:"))


@pytest.mark.parametrize("overrides", [(), ("schedule.max_iters=3000", "loss.ohem=none")])
def test_the_command_makes_the_evidence(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    changed = load_config(CITYSCAPES, overrides=overrides)
    words = command_of(CITYSCAPES, changed, tmp_path)
    assert words[:4] == ["bisenet", "verify", "--config", str(CITYSCAPES)]
    assert words[-2:] == ["--out", str(tmp_path / CITYSCAPES.stem)]
    sets = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    assert len(sets) == len(overrides)
    # what that command verifies is what is to be trained
    write_evidence(tmp_path, load_config(CITYSCAPES, overrides=sets))
    check_parity(CITYSCAPES, changed, logs=tmp_path)


def test_the_command_names_real_data_where_no_scenes_can_be_made(tmp_path: Path) -> None:
    config = load_config(CAMVID, overrides=["data.root=my data"])
    words = command_of(CAMVID, config, tmp_path)
    assert words[words.index("--data") + 1] == "my data"


def test_the_default_folder_of_logs_is_verifys_own(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParityError) as caught:
        check_parity(CITYSCAPES, config)
    assert f"make it with:  bisenet verify --config {CITYSCAPES}\n" in str(caught.value)
    write_evidence(Path("logs"), config)
    check_parity(CITYSCAPES, config)


def test_evidence_with_lists_in_it_holds_for_generated_scenes(tmp_path: Path) -> None:
    """A verification of generated scenes drops the lists, which the training has."""
    config = load_config(CAMVID)
    assert config.data.train_list is not None
    scenes = config.data.model_copy(update={"train_list": None, "val_list": None})
    write_evidence(tmp_path, config.model_copy(update={"data": scenes}), name=CAMVID.stem)
    check_parity(CAMVID, config, logs=tmp_path)


def test_a_configuration_that_is_gone_is_told(tmp_path: Path, config: Config) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        check_parity(tmp_path / "gone.yml", config, logs=tmp_path)


def test_the_resolved_configuration_has_no_more_than_the_recipe(config: Config) -> None:
    """The recipe is what remains of the file when every key is put where it belongs."""
    dumped = yaml.safe_load(config.dump_yaml())
    recipe = config.recipe()
    left_out = {"description", "source", "published", "gpus", "train", "verify"}
    assert set(dumped) - set(recipe) == left_out
    assert set(dumped["data"]) - set(recipe["data"]) == {
        *("root", "train_list", "val_list", "batch_size", "workers"),
    }
    # without a pair there is no key of it: digests made before there were pairs still hold
    assert set(dumped["model"]) - set(recipe["model"]) == {"weights", "backbone_weights", "pair"}


def test_the_code_of_a_pair_of_ones_own_is_part_of_the_evidence(tmp_path: Path) -> None:
    lay_files("own_net", tmp_path / "own")
    path, logs = tmp_path / "own" / "own_net.yml", tmp_path / "logs"
    write_evidence(logs, load_config(path), name="own_net")
    assert check_parity(path, load_config(path), logs=logs).summary.is_file()
    port = path.with_name("paddle_model.py")
    port.write_text(port.read_text() + "# a remark\n")
    (line,) = refusal(load_config(path), logs, path=path)
    assert line == "stale: the code of the pair has changed since (paddle: paddle_model.py)"
