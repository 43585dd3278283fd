"""Where a failure starts, in the order in which each step computes."""

import pytest

from pipeline.diagnose import first_divergence
from pipeline.steps import STEP_NAMES
from pipeline.verdicts import Row, Verdict

FAIL = Verdict.FAIL


def failing(key: str, first: tuple[int, ...] = ()) -> Row:
    return Row(key, FAIL, relative=1.0, first=first)


def passing(key: str) -> Row:
    return Row(key, Verdict.PASS)


@pytest.mark.parametrize("step", STEP_NAMES)
def test_nothing_diverges_when_everything_passes(step: str) -> None:
    assert first_divergence(step, [passing("eval/layer/a"), passing("lr/x")]) is None
    assert first_divergence(step, []) is None


@pytest.mark.parametrize("step", STEP_NAMES)
@pytest.mark.parametrize("key", ["(record)", "provenance/weights", "step9/never/heard/of"])
def test_any_failing_row_is_named(step: str, key: str) -> None:
    found = first_divergence(step, [passing("a/b"), failing(key)])
    assert found is not None
    assert found.key == key
    assert found.text


@pytest.mark.parametrize("verdict", [v for v in Verdict if not v.passed])
def test_every_verdict_but_pass_diverges(verdict: Verdict) -> None:
    found = first_divergence("data", [Row("train/image", verdict)])
    assert found is not None
    assert found.key == "train/image"


@pytest.mark.parametrize(
    ("step", "rows", "key", "text"),
    [
        (
            "forward",
            [
                failing("train/layer/sp.conv1"),
                failing("odd33x65/head/main"),
                failing("eval/head/main"),
                passing("eval/layer/sp.conv1"),
                failing("eval/layer/cp.resnet.bn1"),
                failing("eval/layer/cp.resnet.layer1"),
            ],
            "eval/layer/cp.resnet.bn1",
            "layer cp.resnet.bn1 (eval)",
        ),
        (
            "forward",
            [failing("train/head/main"), failing("train/layer/ffm.bn")],
            "train/layer/ffm.bn",
            "layer ffm.bn (train)",
        ),
        (
            "backward",
            [failing("grad/conv1.weight"), failing("layer/ffm"), failing("layer/cp")],
            "layer/ffm",
            "gradient at ffm, seen from the loss",
        ),
        (
            "backward",
            [failing("layer/ffm"), failing("loss/main")],
            "loss/main",
            "gradient at main, seen from the loss",
        ),
        (
            # parameters come in model order, the gradient runs from the last to the first
            "backward",
            [failing("grad/first.weight"), passing("grad/mid.weight"), failing("grad/last.bias")],
            "grad/last.bias",
            "gradient of parameter last.bias",
        ),
        (
            "backward",
            [failing("buffer/bn.running_mean")],
            "buffer/bn.running_mean",
            "buffer bn.running_mean",
        ),
        (
            "lr_schedule",
            [failing("lr/decay", (7,)), failing("options/decay/momentum")],
            "options/decay/momentum",
            "options of decay/momentum",
        ),
        (
            "lr_schedule",
            [passing("lr/decay"), failing("lr/head_decay", (200,))],
            "lr/head_decay",
            "rate of group head_decay from iteration 200 on",
        ),
        (
            "lr_schedule",
            [failing("lr/decay", (0,)), failing("group/conv.weight")],
            "group/conv.weight",
            "group of conv.weight",
        ),
        (
            "loss",
            [failing("easy/loss/total"), failing("hard/loss/aux16"), failing("hard/grad/main")],
            "hard/loss/aux16",
            "hard, loss, aux16",
        ),
        ("loss", [failing("easy/loss/total")], "easy/loss/total", "easy, loss, total"),
        (
            "optimizer",
            [
                failing("step5/param/a"),
                failing("step1/momentum/a"),
                failing("step1/param/b"),
                failing("moved/step1/a"),
            ],
            "step1/param/b",
            "step1, param, b",
        ),
        (
            "training",
            [
                failing("iteration0010/state/a"),
                failing("loss/total", (9,)),
                failing("lr/decay", (4,)),
                failing("state/a", (0,)),
            ],
            "lr/decay",
            "lr/decay from iteration 4 on",
        ),
        (
            "training",
            [failing("state/a", (0, 0)), Row("iteration0020", Verdict.MISSING)],
            "iteration0020",
            "iteration0020",
        ),
        (
            "training",
            [failing("state/a", (0, 0)), failing("first/loss")],
            "first/loss",
            "first loss",
        ),
        (
            "training",
            [failing("val/matrix", (3, 3))],
            "val/matrix",
            "val matrix",
        ),
        ("data", [failing("train/b"), failing("train/a")], "train/b", "train, b"),
    ],
)
def test_the_first_cause_is_named(step: str, rows: list[Row], key: str, text: str) -> None:
    found = first_divergence(step, rows)
    assert found is not None
    assert (found.key, found.text) == (key, text)
