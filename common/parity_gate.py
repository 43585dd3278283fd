"""Refuses a training without evidence that its network, code and recipe were verified.

The evidence is ``logs/<configuration>/summary.json`` of ``bisenet verify``. It holds for a training
when every step passed in every dtype, of the present code (provenance.code_digest) and of the same
recipe (Config.recipe_digest). Versions and device of the verification are handed on and not
compared: where evidence is made on a CPU and the training runs on a GPU, they differ by intent.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config, load_config
from common.errors import ConfigError, ParityError
from common.provenance import code_digest

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "data": ("float32",),
    "forward": ("float64", "float32"),
    "metric": ("float64",),
    "loss": ("float64", "float32"),
    "backward": ("float64", "float32"),
    "lr_schedule": ("float64",),
    "optimizer": ("float64", "float32"),
    "training": ("float64", "float32"),
}
"""Steps of a whole verification and their dtypes, as in the pipeline's own table (a test compares
them): a summary of some steps only is no proof, though its verdict is PASS."""
SHOWN = 5
"""Differences that are told one by one."""
_SOURCES = "model.pair.sources."
"""Keys of the digests of a user's own network."""


@dataclass(frozen=True)
class ParityProof:
    """Passing evidence for one configuration and the present code."""

    summary: Path
    digest: str
    """sha256 of summary.json; it stands at the head of the training's log."""
    commit: str
    date: str
    device: str
    """Device of the verification: cpu or gpu."""
    versions: Mapping[str, str]
    """Package -> version that the verification ran with: torch, paddle, numpy, ..."""
    verify: Mapping[str, Any]
    """Size of the verification: the ``verify`` section it ran with."""


def check_parity(
    config_path: Path, config: Config, *, logs: Path = Path("logs"), root: Path | None = None
) -> ParityProof:
    """Return the proof for a configuration, or refuse.

    Args:
        config_path: the configuration file; its stem names the folder of the evidence.
        config: as loaded from it, overrides included.
        logs: folder of the evidence.
        root: folder that holds the packages whose digest is compared; None: this code's own.

    Raises:
        ParityError: the evidence is missing, not of all steps, failed, of other code or of
            another recipe; all that is wrong, and the command that makes it anew.
        ConfigError: the configuration file cannot be read.
    """
    path = logs / config_path.stem / "summary.json"
    content, summary = _read(path)
    if summary is None:
        problems = [content.decode()]
    else:
        problems = [
            *_verdict_problems(summary),
            *_code_problems(summary, root),
            *_recipe_problems(summary, config, path.with_name("config.yml")),
        ]
    if problems or summary is None:
        raise ParityError(
            f"{config_path}: no passing, fresh parity evidence for this training\n"
            + "".join(f"  {problem}\n" for problem in problems)
            + f"make it with:  {_command(config_path, config, logs)}\n"
            "or train without it, which the log will tell:  --skip_parity_check"
        )
    versions: dict[str, str] = {}
    for side in summary["versions"].values():
        versions |= side
    return ParityProof(
        summary=path,
        digest=hashlib.sha256(content).hexdigest(),
        commit=str(summary["commit"]),
        date=str(summary["date"]),
        device=str(summary["device"]),
        versions=versions,
        verify=summary["verify"],
    )


def _read(path: Path) -> tuple[bytes, dict[str, Any] | None]:
    """Return the file's bytes and what they hold, or the reason why not and None."""
    try:
        content = path.read_bytes()
        summary: Any = json.loads(content)
    except FileNotFoundError:
        return f"missing: there is no {path}".encode(), None
    except OSError as error:
        return f"missing: {path} cannot be read ({error.strerror})".encode(), None
    except ValueError:
        return f"damaged: {path} is no JSON".encode(), None
    wanted = ("versions", "commit", "date", "device", "verify", "results", "verdict")
    if not isinstance(summary, dict) or any(key not in summary for key in wanted):
        return f"stale: {path} was written by an older version of this code".encode(), None
    return content, summary


def _verdict_problems(summary: Mapping[str, Any]) -> list[str]:
    verdicts = {(row["step"], row["dtype"]): row["verdict"] for row in summary["results"]}
    wanted = [(step, dtype) for step, dtypes in REQUIRED.items() for dtype in dtypes]
    missing = [f"{step} ({dtype})" for step, dtype in wanted if (step, dtype) not in verdicts]
    failed = [f"{step} ({dtype}) {v}" for (step, dtype), v in verdicts.items() if v != "PASS"]
    problems: list[str] = []
    if failed:
        problems.append(f"failed: {', '.join(failed)}")
    elif summary["verdict"] != "PASS":
        problems.append(f"failed: its verdict is {summary['verdict']}")
    if missing:
        problems.append(f"incomplete: not verified were {', '.join(missing)}")
    return problems


def _code_problems(summary: Mapping[str, Any], root: Path | None) -> list[str]:
    own, verified = code_digest(root), str(summary.get("code_digest"))
    if own == verified:
        return []
    return [
        f"stale: the code has changed since (verified {verified[:12]} at commit "
        f"{summary['commit']}, now {own[:12]})"
    ]


def _recipe_problems(summary: Mapping[str, Any], config: Config, verified: Path) -> list[str]:
    if summary.get("recipe_digest") == config.recipe_digest():
        return []
    try:
        found = list(differences(load_config(verified).recipe(), config.recipe()))
    except ConfigError:
        found = []
    sources = [key for key, _, _ in found if key.startswith(_SOURCES)]
    if sources and len(sources) == len(found):
        files = ", ".join(key.removeprefix(_SOURCES).replace(".", ": ", 1) for key in sources)
        return [f"stale: the code of the pair has changed since ({files})"]
    told = [f"{key} was {old}, is {new}" for key, old, new in found[:SHOWN]]
    if len(found) > SHOWN:
        told.append(f"{len(found) - SHOWN} more")
    return ["other config: verified with another recipe" + "".join(f"; {text}" for text in told)]


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, old and new value, as JSON, of all leaves in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        # head_weights, options and the sources of a pair may have a key in one only
        for name in {**old, **new}:
            yield from differences(
                old.get(name), new.get(name), f"{key}.{name}" if key else str(name)
            )
    elif old != new:
        yield key, json.dumps(old), json.dumps(new)


def _command(config_path: Path, config: Config, logs: Path) -> str:
    """Return the command that makes the evidence for this very training."""
    words = ["bisenet", "verify", "--config", str(config_path)]
    for key, _, value in differences(load_config(config_path).recipe(), config.recipe()):
        words += ["--set", f"{key}={value}"]
    if config.data.dataset != "cityscapes":
        # street scenes can be generated for Cityscapes only
        words += ["--data", str(config.data.root)]
    if logs != Path("logs"):
        words += ["--out", str(logs / config_path.stem)]
    return shlex.join(words)
