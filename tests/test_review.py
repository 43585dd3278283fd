"""The acceptance review: it accepts a whole set of logs, and refuses each way of tampering."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from reviewed_logs import CONFIG, NAME, copied, reseal, tree, write_logs
from typer.testing import CliRunner

from common.errors import InputError
from pipeline import chain
from pipeline.cli import app
from pipeline.review import Reviewed, as_json, as_junit, review, review_folder, waiver_check
from pipeline.review_evidence import Check, load_evidence

TREE = tree()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return write_logs(tmp_path_factory.mktemp("evidence") / "logs", monkeypatch)


@pytest.fixture
def logs(original: Path, tmp_path: Path) -> Path:
    return copied(original, tmp_path / "logs")


def refused(folder: Path) -> dict[str, str]:
    """Return what a review says no to: "group/check" -> text."""
    found = review_folder(folder, TREE)
    return {f"{c.group}/{c.name}": c.text for c in found.checks if c.state == "no"}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_whole_set_is_accepted(logs: Path) -> None:
    found = review_folder(logs, TREE)
    assert refused(logs) == {}
    assert found.accepted
    states = {f"{c.group}/{c.name}": c.state for c in found.checks}
    assert states["reprod_log/pairs"] == states["fresh/inputs"] == states["fresh/data"] == "ok"
    # a folder outside of any repository: the comparison with git shows nothing, and says so
    assert [name for name, state in states.items() if state == "unknown"] == ["untouched/committed"]
    marks = {check.name: check.state for check in found.acceptance}
    assert marks["1 forward *"] == marks["4 loss *"] == marks["5 optimiser, rate, decay"] == "ok"
    assert marks["3 metric *"] == marks["9 full training *"] == "unknown"


FILES = [
    "forward_diff.log",
    "config.yml",
    "junit.xml",
    "summary.json",
    "log_reprod/loss_diff.log",
    "log_reprod/lr_torch.npy",
]


@pytest.mark.parametrize("name", FILES)
def test_one_changed_character_is_noticed_and_its_file_named(logs: Path, name: str) -> None:
    content = bytearray((logs / name).read_bytes())
    middle = len(content) // 2
    content[middle] = content[middle] + 1 if content[middle] < 250 else 1
    (logs / name).write_bytes(bytes(content))
    assert f"{name}: " in refused(logs)["untouched/chain"]


def test_every_single_character_of_a_summary_is_covered(original: Path, tmp_path: Path) -> None:
    text = (original / "summary.json").read_bytes()
    path = tmp_path / "summary.json"
    for place in range(0, len(text), 97):
        path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        assert chain.text_problem(path), place
    # what JSON does not read: blanks, and a key that a later one of its name hides
    for changed in (text + b" ", text.replace(b"{", b'{"verdict": "FAIL",', 1)):
        path.write_bytes(changed)
        assert json.loads(changed)["verdict"] == "PASS"
        assert chain.text_problem(path) == "summary.json: changed after it was sealed"


def test_a_file_that_was_added_or_deleted(logs: Path) -> None:
    (logs / "notes.txt").write_text("all is well")
    (logs / "log_reprod" / "metric_diff.log").unlink()
    (logs / "log_reprod" / "lr_paddle.npy").unlink()
    found = refused(logs)
    assert found["untouched/chain"] == (
        "log_reprod/metric_diff.log: missing, though it is in the chain; "
        "notes.txt: not in the chain"
    )
    assert found["reprod_log/logs"] == "metric_diff.log: missing"
    assert "lr_paddle.npy: missing" in found["reprod_log/pairs"]


def stale_code(logs: Path) -> None:
    code = json.loads((logs / "summary.json").read_text())["code_digest"]
    for path in (logs / "summary.json", *logs.glob("*_diff.log")):
        edit(path, code, "a" * 64)


def other_config(logs: Path) -> None:
    edit(logs / "config.yml", "weight_decay: 0.0005", "weight_decay: 0.0004")


def other_override(logs: Path) -> None:
    for path in (logs / "summary.json", *logs.glob("*_diff.log")):
        edit(path, "verify.batch_size=2", "verify.batch_size=3")


def no_step(logs: Path) -> None:
    (logs / "metric_diff.log").unlink()


def no_dtype(logs: Path) -> None:
    path = logs / "loss_diff.log"
    text = path.read_text()
    start, end = text.index("== loss in float32"), text.index("verdict of step")
    path.write_text(text[:start] + text[end:])


def vacuous(logs: Path) -> None:
    path = logs / "metric_diff.log"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("PASS")))


def fewer(logs: Path) -> None:
    """Take one parameter's gradient out, and count one less everywhere in the log."""
    path = logs / "backward_diff.log"
    lines = path.read_text().splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if "  grad/layer7.weight" in line)
    text = "".join([*lines[:gone], *lines[gone + 1 :]])
    path.write_text(text.replace("grad 114", "grad 113", 1))


def loosened(logs: Path) -> None:
    edit(logs / "optimizer_diff.log", " 1.00e-12 ", " 1.00e-09 ")


def loosened_rule(logs: Path) -> None:
    edit(logs / "optimizer_diff.log", "bound 1e-12 for *:", "bound 1e-09 for *:")


def loosened_float32(logs: Path) -> None:
    edit(logs / "forward_diff.log", " 6.27e-07 ", " 6.27e-05 ")


def failing_row(logs: Path) -> None:
    edit(logs / "loss_diff.log", "PASS      1.00e-14", "FAIL      1.00e-02")


def large_row(logs: Path) -> None:
    edit(logs / "loss_diff.log", "PASS      1.00e-14", "PASS      1.00e-02")


def not_a_number(logs: Path) -> None:
    edit(logs / "loss_diff.log", "PASS      1.00e-14", "PASS           nan")


def summary_count(logs: Path) -> None:
    edit(logs / "summary.json", '"comparisons": 8', '"comparisons": 9')


def summary_worst(logs: Path) -> None:
    edit(logs / "summary.json", '"relative": 1e-14', '"relative": 1e-15')


def junit_failure(logs: Path) -> None:
    edit(logs / "junit.xml", 'name="loss[float64]" time="1.00" />', 'name="loss[float16]" />')


def truncated(logs: Path) -> None:
    text = (logs / "summary.json").read_text()
    (logs / "summary.json").write_text(text[: len(text) // 2])


def expired(logs: Path) -> None:
    path = logs / "log_reprod" / "lr_diff.log"
    path.write_text(path.read_text().replace("2026/11/20", "2020/11/20"))


def other_value(logs: Path) -> None:
    edit(logs / "log_reprod" / "forward_diff.log", "value: 8.67", "value: 8.07")


def failed_reprod(logs: Path) -> None:
    edit(logs / "log_reprod" / "forward_diff.log", "check passed: True", "check passed: False")


def empty_reprod(logs: Path) -> None:
    path = logs / "log_reprod" / "metric_diff.log"
    path.write_text(path.read_text().splitlines(keepends=True)[-1])


def other_pair(logs: Path) -> None:
    path = logs / "log_reprod" / "lr_paddle.npy"
    content: Any = np.load(path, allow_pickle=True).item()
    np.save(path, np.array({key: array * 3 for key, array in content.items()}, dtype=object))


def pair_with_code(logs: Path) -> None:
    path = logs / "log_reprod" / "lr_paddle.npy"
    np.save(path, np.array({"lr/x/float64": Path("x")}, dtype=object))


def same_record(logs: Path) -> None:
    for path in (logs / "backward_diff.log", logs / "summary.json"):
        found = json.loads((logs / "summary.json").read_text())
        records = next(r["records"] for r in found["results"] if r["step"] == "backward")
        path.write_text(path.read_text().replace(records["paddle"], records["torch"]))


def both_loaded(logs: Path) -> None:
    edit(logs / "loss_diff.log", "with torch loaded", "with torch, paddle loaded")


def dirty_commit(logs: Path) -> None:
    for path in (logs / "summary.json", *logs.glob("*_diff.log")):
        edit(path, "0123456789ab", "0123456789ab+changes")


def other_inputs(logs: Path) -> None:
    inputs = load_evidence(logs).sections["loss", "float64"].inputs
    for path in (logs / "summary.json", logs / "loss_diff.log"):
        path.write_text(path.read_text().replace(inputs, "b" * 64))


def other_versions(logs: Path) -> None:
    for path in (logs / "summary.json", *logs.glob("*_diff.log")):
        text = path.read_text()
        path.write_text(text.replace("'torch': '2", "'torch': '1").replace('h": "2.', 'h": "1.'))


def renamed(logs: Path) -> None:
    edit(logs / "backward_diff.log", "grad/layer9.weight", "grad/layor9.weight")


def out_of_order(logs: Path) -> None:
    edit(logs / "loss_diff.log", " 1.00e-14 ", " 0.10e-14 ")


def smaller(logs: Path) -> None:
    path = logs / "optimizer_diff.log"
    first = next(line for line in path.read_text().splitlines() if line.startswith("PASS"))
    edit(path, first, first.replace(" 1.00e-12", " 1.00e-13").replace(" 1.00e-14", " 1.00e-15"))


def other_reason(logs: Path) -> None:
    edit(logs / "summary.json", "float64 keeps 16 digits", "float64 keeps 17 digits")


def swapped_sides(logs: Path) -> None:
    edit(logs / "loss_diff.log", "reference = torch", "reference = Torch")


def no_commit(logs: Path) -> None:
    edit(logs / "loss_diff.log", "commit: 0123456789ab\n", "")


def small(logs: Path) -> None:
    edit(logs / "summary.json", '"train_iters": 100', '"train_iters": 1')


def page_of(logs: Path, *, relative: float) -> None:
    row = ["eval/layer/x", "", relative, 1e-12, "", 1e-7, 6.27e-7, 1e-7, 1.0, ""]
    (logs / "evidence.json").write_text(json.dumps({"tensors": {"forward": [row]}}))


def pretty_page(logs: Path) -> None:
    page_of(logs, relative=1e-16)


def torn_page(logs: Path) -> None:
    (logs / "evidence.json").write_text('{"tensors": {"forward": [["eval')


RESEALED: list[tuple[Callable[[Path], None], str, str]] = [
    (stale_code, "fresh/code", "stale: verified with aaaaaaaaaaaa"),
    (other_config, "fresh/configuration", "optimizer.weight_decay was 0.0004, is 0.0005"),
    (other_override, "fresh/configuration", "verify.batch_size was 2, is 3"),
    (no_step, "complete/steps", "metric: no log"),
    (no_dtype, "complete/steps", "loss: float64, expected float64, float32"),
    (vacuous, "not vacuous/comparisons", "metric float64: nothing was compared"),
    (fewer, "not vacuous/comparisons", "tensors by kind"),
    (loosened, "consistent/bounds", "bound 1.00e-09, the present table allows 1.00e-12"),
    (loosened_rule, "consistent/bounds", "its rules are not those of the present table"),
    (loosened_float32, "consistent/bounds", "bound 6.27e-05, the present table allows 6.3"),
    (failing_row, "consistent/verdicts", "loss float64: FAIL mostly_hard/"),
    (large_row, "consistent/verdicts", "is off by 1.00e-02, bound 1.00e-12"),
    (not_a_number, "not vacuous/comparisons", "is not finite"),
    (summary_count, "consistent/summary", "comparisons is"),
    (summary_worst, "consistent/summary", "worst in the log"),
    (junit_failure, "consistent/JUnit", "loss[float64]: missing in junit.xml"),
    (expired, "reprod_log/logs", "lr_diff.log: expired, of 2020-11-20"),
    (other_value, "reprod_log/records", "eval/head/x/float64 is 8.07e-19, the step's log has 8.67"),
    (failed_reprod, "reprod_log/logs", "forward_diff.log: eval/head/x/float64 failed"),
    (empty_reprod, "reprod_log/logs", "metric_diff.log: nothing was compared"),
    (other_pair, "reprod_log/pairs", "lr: lr/x/float64 differs by 2.602e-18"),
    (pair_with_code, "reprod_log/pairs", "lr_paddle.npy: refused, it asks for"),
    (same_record, "not vacuous/records", "one side against itself"),
    (both_loaded, "not vacuous/records", "the torch process had torch, paddle loaded"),
    (dirty_commit, "fresh/commit", "the code was not committed"),
    (other_inputs, "fresh/inputs", "loss float64: bbbbbbbbbbbb, drawn anew"),
    (renamed, "consistent/names", "backward: grad/layer9.weight is of one dtype only"),
    (out_of_order, "consistent/verdicts", "a line of no known form: 'PASS      0.10e-14"),
    (smaller, "consistent/summary", "worst in the log step1/param/conv_out.weight 1.00e-1"),
    (other_reason, "consistent/summary", "another reason for its bound than the table"),
    (swapped_sides, "consistent/heads", "does not say 'reference = torch, actual = paddle'"),
    (no_commit, "consistent/heads", "loss_diff.log: its head has no commit"),
    (small, "not vacuous/sizes", "verify.train_iters is 1, at least 30"),
    (pretty_page, "consistent/page", "eval/layer/x is PASS 1.00e-16, in the log PASS 1.00e-14"),
    (torn_page, "consistent/page", "evidence.json: unreadable or truncated"),
    (other_versions, "fresh/versions", "torch 1."),
]


@pytest.mark.parametrize(
    ("change", "check", "text"), RESEALED, ids=lambda v: getattr(v, "__name__", "")
)
def test_an_edit_is_noticed_by_what_it_says_even_when_it_is_sealed_again(
    logs: Path, change: Callable[[Path], None], check: str, text: str
) -> None:
    change(logs)
    assert "untouched/chain" in refused(logs)
    reseal(logs)
    found = refused(logs)
    assert text in found[check]
    assert "untouched/chain" not in found


def test_a_page_that_says_what_the_logs_say(logs: Path) -> None:
    page_of(logs, relative=1e-14)
    reseal(logs)
    assert refused(logs) == {}


def test_a_truncated_summary_is_refused_and_named(logs: Path) -> None:
    truncated(logs)
    found = refused(logs)
    assert found["complete/files"].startswith("summary.json: unreadable or truncated")
    assert found["untouched/chain"].startswith("summary.json: unreadable or truncated")


def test_the_logs_of_another_network_in_this_ones_place(original: Path, tmp_path: Path) -> None:
    folder = copied(original, tmp_path / "logs")
    other = folder.rename(folder.with_name("bisenetv2_cityscapes"))
    text = "the logs of configs/bisenetv1_cityscapes.yml in the place of bisenetv2_cityscapes"
    assert refused(other) == {"fresh/configuration": text}
    chain_text = " ".join(chain.root_problems(tmp_path / "logs"))
    assert f"{NAME}/summary.json: sealed, and missing" in chain_text
    assert "bisenetv2_cityscapes: not in SEAL.json" in chain_text


def test_a_summary_of_another_run(logs: Path) -> None:
    summary = json.loads((logs / "summary.json").read_text())
    del summary["chain"]
    (logs / "summary.json").unlink()
    chain.seal(logs, summary | {"date": "2026-11-20T00:00:00+00:00"}, written=())
    assert "data_diff.log: date is" in refused(logs)["consistent/heads"]
    # its own seal is whole, and not the one that was linked
    assert chain.problems(logs) == []


def test_a_replaced_folder_breaks_the_links(original: Path, tmp_path: Path) -> None:
    first = copied(original, tmp_path / "logs")
    root = first.parent / chain.ROOT_SEAL
    seals = root.read_bytes()
    assert chain.root_problems(first.parent) == []
    edit(first / "loss_diff.log", "PASS", "pass")
    reseal(first)
    assert chain.problems(first) == []
    assert chain.root_problems(first.parent) == []
    root.write_bytes(seals)
    assert chain.root_problems(first.parent) == [
        f"{NAME}: another seal than in SEAL.json: the folder was replaced"
    ]


def test_an_index_of_the_family_is_covered(logs: Path) -> None:
    root = logs.parent
    (root / "index.html").write_text("<p>PASS</p>")
    chain.renew(root, "index.html")
    assert chain.root_problems(root) == []
    (root / "index.html").write_text("<p>pass</p>")
    assert chain.root_problems(root) == ["index.html: changed after it was sealed"]


def test_a_renewal_vouches_for_nothing_but_its_own_files(logs: Path) -> None:
    edit(logs / "loss_diff.log", "PASS", "pass")
    (logs / "audit.log").write_text("all caught")
    chain.renew(logs, "audit.log")
    assert chain.problems(logs) == ["loss_diff.log: changed after it was sealed"]
    # and a broken seal is not mended
    edit(logs / "summary.json", "PASS", "pass")
    (logs / "audit.log").write_text("none caught")
    chain.renew(logs, "audit.log")
    assert chain.problems(logs) == ["summary.json: changed after it was sealed"]


def test_an_audit_with_a_survivor_or_of_other_code(logs: Path) -> None:
    code = json.loads((logs / "summary.json").read_text())["code_digest"]
    finding = {"model": "bisenetv1", "fault": "bn_eps", "caught": False}
    audit = {"code_digest": code, "findings": [finding]}
    (logs / "audit.json").write_text(json.dumps(audit))
    assert refused(logs)["fresh/audit"] == "bn_eps of bisenetv1 was not caught"
    wrong = finding | {"caught": True, "explained": False}
    (logs / "audit.json").write_text(json.dumps(audit | {"findings": [wrong]}))
    assert refused(logs)["fresh/audit"] == "bn_eps of bisenetv1 was explained wrongly"
    audit = {"code_digest": "c" * 64, "findings": [finding | {"caught": True}]}
    (logs / "audit.json").write_text(json.dumps(audit))
    assert refused(logs)["fresh/audit"] == "stale: audited with cccccccccccc"


def test_waivers_are_listed(logs: Path, tmp_path: Path) -> None:
    row = {"tensor": "grad/x", "reason": "a kernel's own", "lifts": "the kernel's author"}
    (tmp_path / "waivers.yml").write_text(json.dumps([row]))
    rows, check = waiver_check(load_evidence(logs), tmp_path)
    assert rows == ("tensor: grad/x, reason: a kernel's own, lifts: the kernel's author",)
    assert check == Check("waivers", "listed", "ok", "1 in waivers.yml")
    (tmp_path / "waivers.yml").write_text("{")
    assert waiver_check(load_evidence(logs), tmp_path)[1].state == "no"
    evidence = load_evidence(logs)
    waived = replace(evidence, summary={**evidence.summary, "waivers": ["grad/x"]})
    assert waiver_check(waived, tmp_path / "none")[1].state == "no"


def test_the_family_needs_every_network(logs: Path) -> None:
    found = review(logs.parent, tree=TREE)
    assert not found.accepted
    assert "bisenetv1_2020: no logs" in found.common.checks[0].text
    assert found.common.checks[1].state == "ok"
    assert found.refused[0] == "bisenetv1_2020_cityscapes"
    alone = review(logs.parent, names=[NAME], tree=TREE)
    assert alone.accepted
    assert review(logs, tree=TREE).accepted


def test_logs_that_must_be_as_committed(logs: Path) -> None:
    def git(*words: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(logs.parent), *names, *words], check=True)

    assert review(logs, tree=TREE).accepted
    assert not review(logs, tree=TREE, committed=True).accepted
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "logs")
    assert review(logs, tree=TREE, committed=True).accepted
    edit(logs / "loss_diff.log", "step loss: every", "step loss: Every")
    reseal(logs)
    # nothing else can tell: whoever edits can seal again
    assert review(logs, tree=TREE).accepted
    checks = review(logs, tree=TREE, committed=True).configurations[0].checks
    told = next(check for check in checks if check.name == "committed")
    assert (told.state, told.text.partition(":")[0]) == ("no", "loss_diff.log, summary.json")


def test_for_machines(logs: Path) -> None:
    edit(logs / "junit.xml", "loss", "lost")
    found = review(logs, tree=TREE)
    content = json.loads(json.dumps(as_json(found)))
    assert content["verdict"] == "REFUSED"
    assert content["refused"] == [NAME]
    suite = ElementTree.fromstring(as_junit(found).encode())
    assert int(suite.get("failures", "")) == sum(
        check.state == "no" for check in found.configurations[0].checks
    )
    assert suite.find(".//testcase[@name='chain']/failure") is not None


def test_the_command(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli_review.Tree", lambda *_, **__: TREE)
    run = CliRunner()
    done = run.invoke(app, ["review", str(logs.parent), "--config", f"configs/{NAME}.yml"])
    assert done.exit_code == 0, done.output
    done = run.invoke(app, ["review", str(logs), "--json", "--junit", str(tmp_path / "r.xml")])
    assert json.loads(done.stdout)["verdict"] == "ACCEPTED"
    assert ElementTree.parse(tmp_path / "r.xml").getroot().get("failures") == "0"
    truncated(logs)
    assert run.invoke(app, ["review", str(logs), "--json"]).exit_code == 1
    with pytest.raises(InputError, match="no such folder"):
        run.invoke(app, ["review", str(tmp_path / "none")], catch_exceptions=False)


def test_no_framework_is_loaded(logs: Path) -> None:
    code = (
        "import sys\nfrom pipeline.cli import app\n"
        "try:\n    app()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'paddle'} & set(sys.modules), 'a framework was loaded'\n"
    )
    command = [sys.executable, "-c", code, "review", str(logs), "--brief"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(done.stdout.encode()).hexdigest()


def test_a_review_of_nothing_refuses() -> None:
    assert not Reviewed("x", "", (Check("complete", "files", "no"),)).accepted
    assert CONFIG.model.name == "bisenetv1"
