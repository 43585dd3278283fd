"""Configuration: YAML with ``_base_`` inheritance into frozen models that forbid unknown keys.

PyYAML follows YAML 1.1 and reads ``5e-4`` (no dot) as a string; the models turn it into a number.
An override (``--set schedule.max_iters=100``) goes through the same models as the file. What the
sections hold stands in common/config_sections.py.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from common.config_sections import (
    DataConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PositiveInt,
    Published,
    ScheduleConfig,
    Section,
    TrainConfig,
    VerifyConfig,
)
from common.errors import ConfigError
from common.own_pair import Reference, Side, own_sources, parse_reference

_TOLD = {"description", "source", "published", "gpus", "train"}
"""Top-level keys that no step of a verification depends on."""
_PASSES = {"protocol", "crop_hw", "short_side"}
"""Keys of ``eval`` that only `bisenet eval` reads."""
_REPLACED_DATA = {"root", "train_list", "val_list", "batch_size", "workers"}


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Config(Section):
    """One experiment: everything a run depends on besides the data and the start weights."""

    description: str = ""
    source: str = ""
    """Where the recipe was published."""
    published: tuple[Published, ...] = ()
    """What the recipe reached where it was published; nothing of a run depends on it."""
    gpus: PositiveInt = 1
    """Processes the recipe was published with; data.batch_size counts the images of each."""
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    eval: EvalConfig = EvalConfig()
    verify: VerifyConfig = VerifyConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _void_is_not_a_class(self) -> Config:
        if self.data.ignore_index < self.model.classes:
            raise ValueError(
                f"data.ignore_index is {self.data.ignore_index}, one of the {self.model.classes} "
                f"classes; expected a value outside 0..{self.model.classes - 1}"
            )
        return self

    def digest(self) -> str:
        """Return the sha256 of what a verification depends on, independent of key order and place.

        Left out: where the data and the start weights lie (a run's files have digests of their
        own), what is only said about the experiment, and ``train``, which no step of a
        verification reads: another log interval must not call for new evidence. What ``train``
        changes in the numbers of a training (precision, accumulation, clipping, averaging) is told
        by the resolved configuration beside its checkpoints.
        """
        content = self.model_dump(mode="json", exclude=_TOLD | {"data", "model", "eval"})
        content["eval"] = self.eval.model_dump(mode="json", exclude=_PASSES)
        content["model"] = self.model.identity()
        content["data"] = self.data.model_dump(mode="json", exclude={"root"})
        return _sha256(content)

    def recipe(self) -> dict[str, Any]:
        """Return, as JSON has it, what a verification and a training must have in common.

        That is what ``digest`` covers without ``verify`` (the size of the verification), without
        where the start weights and the lists of samples lie, and without the batch size and the
        loader processes, which every step replaces by its own.
        """
        content = self.model_dump(mode="json", exclude=_TOLD | {"data", "model", "eval", "verify"})
        content["eval"] = self.eval.model_dump(mode="json", exclude=_PASSES)
        content["model"] = self.model.identity()
        content["data"] = self.data.model_dump(mode="json", exclude=_REPLACED_DATA)
        return content

    def recipe_digest(self) -> str:
        """Return the sha256 of the recipe, independent of key order and place."""
        return _sha256(self.recipe())

    def dump_yaml(self) -> str:
        """Return the resolved configuration as YAML, loadable by load_config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path, *, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, merge its ``_base_`` chain, apply overrides, check every value.

    Args:
        path: the YAML file; ``_base_`` (a path or a list, relative to the file) is merged first.
        overrides: ``dotted.key=value`` texts; the value is read as YAML.

    Raises:
        ConfigError: naming file, dotted key, value, what was expected and the nearest valid key.
    """
    merged = _read_with_bases(path, chain=())
    origin = str(path)
    for text in overrides:
        merged = _apply_override(merged, text)
        origin += f" --set {text}"
    # those of an override count from the working folder, like every path that is typed
    merged = _with_absolute_pair(merged, Path())
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(origin, error)) from None
    return _with_sources(config)


_SIDES: tuple[Side, Side] = ("torch", "paddle")


def _with_sources(config: Config) -> Config:
    """Write the digests of a user's own pair into the configuration.

    A resolved configuration beside old logs has them already and its files may be elsewhere: it is
    taken by its word, for it says what was verified then.
    """
    pair = config.model.pair
    if pair is None:
        return config
    references: dict[Side, Reference] = {
        side: parse_reference(pair.reference(side)) for side in _SIDES
    }
    if pair.sources and not any(reference.path.is_file() for reference in references.values()):
        return config
    sources = {side: own_sources(reference, side) for side, reference in references.items()}
    if pair.sources and pair.sources != sources:
        raise ConfigError(
            f"model.pair: {', '.join(str(r.path) for r in references.values())}, or a file that "
            "they import, have changed since this resolved configuration was written; use the "
            "configuration that it was made from"
        )
    model = config.model.model_copy(update={"pair": pair.model_copy(update={"sources": sources})})
    return config.model_copy(update={"model": model})


def _with_absolute_pair(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Let the files of a pair count from the folder of the configuration that names them."""
    model: Any = content.get("model")
    pair: Any = model.get("pair") if isinstance(model, dict) else None
    if not isinstance(pair, dict):
        return content
    named = {
        side: str(folder.resolve() / pair[side])
        for side in _SIDES
        if isinstance(pair.get(side), str)
    }
    return {**content, "model": {**model, "pair": {**pair, **named}}}


def _read_with_bases(path: Path, *, chain: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in chain:
        circle = " -> ".join(str(p.name) for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"{path}: _base_ is cyclic ({circle}); remove one of these references")
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    own = _with_absolute_pair({str(key): value for key, value in content.items()}, path.parent)
    bases: Any = own.pop("_base_", [])
    names: list[Any] = bases if isinstance(bases, list) else [bases]
    merged: dict[str, Any] = {}
    for base in names:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: _base_ is {bases!r}; expected a path or a list of paths")
        merged = _merge(merged, _read_with_bases(path.parent / base, chain=(*chain, resolved)))
    return _merge(merged, own)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old: Any = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _apply_override(content: Mapping[str, Any], text: str) -> dict[str, Any]:
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text}: expected KEY=VALUE, for example schedule.max_iters=100")
    try:
        value: Any = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML: {error}") from None
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return _merge(content, value)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yml")], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _explain(origin: str, error: ValidationError) -> str:
    lines = [f"{origin}: {error.error_count()} error(s) in the configuration"]
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            known = _keys_at(item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"  {where}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: missing; add it or inherit it with _base_")
        else:
            shown = "" if where == "(whole file)" else f" (got {item['input']!r})"
            lines.append(f"  {where}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
