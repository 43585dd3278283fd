"""Reviews whether evidence is of the present tree: code, configuration, inputs, data, versions.

Nothing is taken on trust that can be made again: the code's digest is computed, the configuration
is loaded with the overrides of the run, and the saved inputs are drawn anew and hashed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.config import Config, load_config
from common.errors import InputError
from common.files import file_digest
from common.parity_gate import differences
from common.provenance import code_digest, committed_code_digest
from pipeline.catalogue import FAMILY_OVERRIDES
from pipeline.inputs import DATA_STEPS, data_digest, prepare_inputs
from pipeline.outcome import Options
from pipeline.review_evidence import Check, Evidence, judged
from pipeline.runner import resolve_data
from pipeline.steps import SIDES, STEP_NAMES

DATA_SET = "(data set)"
PINS = "requirements*.txt"
_PACKAGES = {"torch": "torch", "paddle": "paddlepaddle", "numpy": "numpy", "cv2": "opencv"}
"""What a record calls a package -> how the line that pins it begins."""


@dataclass
class Tree:
    """The tree that evidence is held against; what is computed once for all configurations."""

    root: Path
    """Folder of the packages, configs/ and requirements."""
    data: Path | None = None
    """Folder of real data, for evidence made with it."""
    commits: dict[str, str] = field(default_factory=dict[str, str])
    """Digest of the code by commit; empty where git does not know it."""
    _inputs: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    @cached_property
    def code(self) -> str:
        """Digest of the code."""
        return code_digest(self.root)

    def code_of(self, commit: str) -> str:
        """Return the digest of the code at a commit; empty when git does not know it."""
        if commit not in self.commits:
            self.commits[commit] = committed_code_digest(commit, root=self.root)
        return self.commits[commit]

    def inputs(self, config: Config, *, real: bool) -> dict[str, str]:
        """Return the digests of the inputs that a verification would save, by step.

        The data set's own is under DATA_SET; it and the forward step's are left out when they
        depend on real data that are not here.
        """
        key = f"{real} {config.digest()}"
        if key not in self._inputs:
            self._inputs[key] = self._draw(config, real=real)
        return self._inputs[key]

    def _draw(self, config: Config, *, real: bool) -> dict[str, str]:
        steps = list(STEP_NAMES)
        digests: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="bisenet_review.") as name:
            scratch = Path(name)
            if real and self.data is None:
                steps.remove("forward")
            else:
                options = Options(
                    out=scratch, steps=STEP_NAMES, data=self.data if real else None, scratch=scratch
                )
                config = resolve_data(config, options)
                digests[DATA_SET] = data_digest(config)
            prepare_inputs(scratch / "inputs", config, steps=steps, real_frames=real)
            for path in (scratch / "inputs").glob("*.npz"):
                digests[path.stem] = file_digest(path)
        return digests


def fresh_checks(evidence: Evidence, tree: Tree) -> Iterator[Check]:
    """Yield the checks of group fresh."""
    summary = evidence.summary
    if not summary:
        yield Check("fresh", "code", "no", "summary.json cannot be read")
        return
    yield _code_check(summary, tree)
    yield _commit_check(summary, tree)
    config, check = _config_check(evidence, tree)
    yield check
    if config is not None:
        yield from _input_checks(evidence, config, tree)
    yield _weights_check(evidence)
    yield _versions_check(summary, tree)
    yield git_check(evidence.folder)


def _code_check(summary: Mapping[str, Any], tree: Tree) -> Check:
    verified = str(summary.get("code_digest"))
    if verified == tree.code:
        return Check("fresh", "code", "ok", f"digest {tree.code[:12]}")
    text = f"stale: verified with {verified[:12]}, the tree has {tree.code[:12]}"
    return Check("fresh", "code", "no", text)


def _commit_check(summary: Mapping[str, Any], tree: Tree) -> Check:
    commit = str(summary.get("commit"))
    if not re.fullmatch(r"[0-9a-f]{7,40}(\+changes)?", commit):
        return Check("fresh", "commit", "no", f"{commit}: expected a commit's hash")
    if commit.endswith("+changes"):
        return Check("fresh", "commit", "no", f"{commit}: the code was not committed when it ran")
    if not _git(tree.root, "rev-parse", "HEAD"):
        return Check("fresh", "commit", "unknown", f"{commit}: this tree is no git repository")
    found = tree.code_of(commit)
    if not found:
        return Check("fresh", "commit", "no", f"{commit}: git does not know it (a shallow clone?)")
    if found != summary.get("code_digest"):
        return Check("fresh", "commit", "no", f"{commit} holds other code than was verified")
    return Check("fresh", "commit", "ok", f"{commit} holds the code that was verified")


def _config_check(evidence: Evidence, tree: Tree) -> tuple[Config | None, Check]:
    """Load the tree's configuration as the run did; return it and whether it is the same."""
    summary = evidence.summary
    try:
        name, overrides, real = run_arguments(str(summary.get("command", "")), evidence.name)
        config = load_config(tree.root / "configs" / f"{name}.yml", overrides=overrides)
        verified = load_config(evidence.folder / "config.yml")
    except (InputError, ValueError) as error:
        text = str(error).replace(f"{tree.root}/", "").replace(f"{evidence.folder}/", "")
        return None, Check("fresh", "configuration", "no", text)
    if not real:
        # the run of generated scenes leaves a recipe's lists out, see resolve_data
        lists = {"train_list": None, "val_list": None}
        config = config.model_copy(update={"data": config.data.model_copy(update=lists)})
    told = [
        f"{key} was {old}, is {new}"
        for key, old, new in differences(verified.recipe(), config.recipe())
    ]
    problems = list(told)
    if summary.get("recipe_digest") != config.recipe_digest():
        problems = told or ["the recipe's digest is not the one of the tree"]
    elif summary.get("config_digest") != config.digest():
        sizes = differences(summary.get("verify"), config.verify.model_dump(mode="json"))
        problems += [f"verify.{key} was {old}, is {new}" for key, old, new in sizes] or [
            "the configuration's digest is not the one of the tree"
        ]
    elif not _has_places(verified) and verified.digest() != config.digest():
        problems.append("config.yml is not the configuration that the digest is of")
    model = summary.get("model")
    if model != config.model.name:
        problems.append(f"summary.json is of model {model}, configs/{name}.yml has another")
    if name != evidence.name and (tree.root / "configs" / f"{evidence.name}.yml").is_file():
        problems.append(f"the logs of configs/{name}.yml in the place of {evidence.name}")
    ok = f"configs/{name}.yml{' with overrides' if overrides else ''}"
    return config, judged("fresh", "configuration", problems, ok)


def _has_places(config: Config) -> bool:
    """Tell whether config.yml, written without a machine's folders, can have another digest."""
    return config.data.train_list is not None or config.data.val_list is not None


def run_arguments(command: str, name: str) -> tuple[str, list[str], bool]:
    """Return what a ``bisenet verify`` ran: configuration, overrides, and whether on real data.

    Args:
        command: the command line as the logs have it.
        name: of the logs' folder, which names the configuration of a run over the family.

    Raises:
        ValueError: it is no ``bisenet verify``.
    """
    words = shlex.split(command)
    if words[:2] != ["bisenet", "verify"]:
        raise ValueError(f"the command is {command!r}, expected a bisenet verify")
    pairs = [(word, after) for word, after in zip(words, [*words[1:], ""], strict=True)]
    pairs += [(word.partition("=")[0], word.partition("=")[2]) for word in words if "=" in word]
    sets = [after for word, after in pairs if word == "--set"]
    configs = [Path(after).stem for word, after in pairs if word == "--config"]
    family = list(FAMILY_OVERRIDES) if "--all" in words else []
    real = any(word == "--data" for word, _ in pairs)
    return (configs[-1] if configs else name), [*family, *sets], real


def _input_checks(evidence: Evidence, config: Config, tree: Tree) -> Iterator[Check]:
    real = evidence.summary.get("data") == "real"
    try:
        drawn = tree.inputs(config, real=real)
    except InputError as error:
        yield Check("fresh", "inputs", "no", str(error).replace(f"{tree.root}/", ""))
        return
    problems: list[str] = []
    data: set[str] = set()
    compared = 0
    for (step, dtype), section in evidence.sections.items():
        if step in DATA_STEPS:
            data.add(section.data)
        expected = drawn.get(step, "by rule")
        if step == "forward" and step not in drawn:
            continue
        compared += 1
        if section.inputs != expected:
            problems.append(f"{step} {dtype}: {section.inputs[:12]}, drawn anew {expected[:12]}")
    missing = "" if "forward" in drawn else "; forward's hold real frames, which are not here"
    yield judged("fresh", "inputs", problems, f"of {compared} runs drawn anew{missing}")
    if DATA_SET not in drawn:
        text = "real data, which are not here: name their folder with --data"
        one = "" if len(data) == 1 else f"{len(data)} different data sets were used"
        yield Check("fresh", "data", "no" if one else "unknown", one or text)
        return
    here = drawn[DATA_SET]
    wrong = [f"data set {digest[:12]}, here {here[:12]}" for digest in data if digest != here]
    words = "the samples here" if real else "scenes generated anew"
    yield judged("fresh", "data", wrong, words)


def _weights_check(evidence: Evidence) -> Check:
    """By rule, weights follow from the code; a file's digest must be the same in all steps."""
    said = evidence.summary.get("weights")
    found = {section.weights for section in evidence.sections.values()} - {""}
    if not found and said == "by rule":
        return Check("fresh", "weights", "ok", "by rule, so of the code's digest")
    if len(found) != 1:
        text = f"{len(found)} different digests of the weights in the logs, expected one"
        return Check("fresh", "weights", "no", text)
    digest = found.pop()
    if (digest == "by rule") != (said == "by rule"):
        return Check("fresh", "weights", "no", f"{said} in summary.json, {digest[:12]} in the logs")
    if digest == "by rule":
        return Check("fresh", "weights", "ok", "by rule, so of the code's digest")
    text = f"of the file {said}, sha256 {digest}: compare it with your own"
    return Check("fresh", "weights", "unknown", text)


def _versions_check(summary: Mapping[str, Any], tree: Tree) -> Check:
    """Find the requirements file whose pins the versions of both sides are."""
    versions: Any = summary.get("versions")
    if not isinstance(versions, dict) or not all(versions.get(side) for side in SIDES):
        return Check("fresh", "versions", "no", "summary.json has no versions of both sides")
    found = [(name, str(v)) for side in SIDES for name, v in versions[side].items()]
    nearest: list[str] = []
    for path in sorted(tree.root.glob(PINS)):
        wrong = list(_unpinned(found, path.read_text(encoding="utf-8")))
        if not wrong:
            shown = ", ".join(f"{n} {v}" for n, v in found if n in SIDES)
            return Check("fresh", "versions", "ok", f"of {path.name}: {shown}")
        if not nearest or len(wrong) < len(nearest):
            nearest = [f"{text} in {path.name}" for text in wrong]
    return judged("fresh", "versions", nearest or ["the tree has no requirements.txt"])


def _unpinned(found: Sequence[tuple[str, str]], text: str) -> Iterator[str]:
    for name, version in found:
        package = _PACKAGES.get(name)
        if package is None:
            continue
        line = re.search(rf"^{package}[\w-]*==(\S+)", text, re.MULTILINE)
        # "2.13.0+cpu" is a build of 2.13.0, and cv2 leaves off the last part of its wheel's
        plain = version.partition("+")[0]
        if line is None or f"{line[1]}.".startswith(f"{plain}.") is False:
            yield f"{name} {version}, pinned {line[1] if line else 'nowhere'}"


def git_check(folder: Path) -> Check:
    """Compare a folder of logs with the commit that is checked out."""
    name = "committed"
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not head:
        return Check("untouched", name, "unknown", "the logs are in no git repository")
    changed = _git(folder, "status", "--porcelain", "--", ".").splitlines()
    if not changed:
        if not _git(folder, "ls-files", "--", "summary.json"):
            return Check("untouched", name, "unknown", "git ignores these logs")
        return Check("untouched", name, "ok", f"as in {head}")
    files = ", ".join(Path(line[3:]).name or line[3:] for line in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return Check("untouched", name, "unknown", f"{files}{more}: not as in {head}")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""


def audit_problems(content: Mapping[str, Any], digests: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with an audit: a survivor, or other code than the verification's."""
    for finding in content.get("findings", []):
        if isinstance(finding, dict) and finding.get("caught") is not True:
            yield f"{finding.get('fault')} of {finding.get('model')} was not caught"
        elif isinstance(finding, dict) and finding.get("explained") is False:
            yield f"{finding.get('fault')} of {finding.get('model')} was explained wrongly"
    if content.get("code_digest") not in set(digests):
        yield f"stale: audited with {str(content.get('code_digest'))[:12]}"
