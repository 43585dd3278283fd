"""Imports and builds one side of a user's own pair, and names what it returns.

Called by for_torch/models/own.py and for_paddle/models/own.py, each in a process with that
framework alone. The code is the user's and is trusted like any module that he imports himself.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from common.config_pair import PairConfig
from common.errors import ConfigError
from common.own_pair import Reference, Side, own_files, own_sources, parse_reference


def load_own(pair: PairConfig, side: Side) -> Callable[..., Any]:
    """Import the file that the pair names for a side, and return the class or function.

    Raises:
        ConfigError: the file cannot be imported, has changed since the configuration was read,
            takes a module of its folder from elsewhere, or has loaded the other framework.
    """
    reference = parse_reference(pair.reference(side))
    sources = own_sources(reference, side)
    if pair.sources and pair.sources.get(side) != sources:
        raise ConfigError(
            f"{reference.path} (or a file it imports) has changed since the configuration was "
            "read; start again"
        )
    other = "paddle" if side == "torch" else "torch"
    before = other in sys.modules
    module = _import_file(reference, sources)
    if other in sys.modules and not before:
        raise ConfigError(
            f"{reference.path}: importing it has loaded {other}, too; each side runs in a process "
            "with its own framework alone: find the import with `python -X importtime`"
        )
    _check_neighbours(reference, side)
    return getattr(module, reference.name)


def _import_file(reference: Reference, sources: Mapping[str, str]) -> ModuleType:
    path = reference.path
    # named after its content: an edited file is imported anew, two pairs do not meet
    name = f"own_pair_{path.stem}_{sources[path.name][:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        # last, so that no file of the user's takes the place of an installed module
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _check_neighbours(reference: Reference, side: Side) -> None:
    """See that every module of the folder was taken from there: its digest says that it was."""
    for name, path in own_files(reference, side).items():
        dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        loaded = getattr(sys.modules.get(dotted), "__file__", None)
        if path != reference.path and loaded and Path(loaded).resolve() != path.resolve():
            raise ConfigError(
                f"{reference.path} imports {dotted}, of which there is one beside it, but Python "
                f"has loaded {loaded}; rename {path.name}"
            )


def construct(
    found: Callable[..., Any],
    *,
    where: str,
    classes: int,
    aux_heads: bool,
    options: Mapping[str, Any],
) -> Any:
    """Call a user's class or function: ``found(classes, **options)``.

    Args:
        found: from load_own.
        where: what to call it in a message.
        classes: number of classes, the first argument.
        aux_heads: False is handed on as a keyword where there is an argument of that name.
        options: the configuration's ``model.options``.

    Raises:
        ConfigError: it does not take these arguments.
    """
    arguments = dict(options)
    if not callable(found):
        raise ConfigError(f"{where} is {found!r}; expected a class, or a function")
    signature = inspect.signature(found)
    if not aux_heads and "aux_heads" in signature.parameters:
        arguments["aux_heads"] = False
    shown = ", ".join([str(classes), *(f"{name}={value!r}" for name, value in arguments.items())])
    try:
        signature.bind(classes, **arguments)
    except TypeError as error:
        raise ConfigError(
            f"{where} has the arguments {signature} and is called as {where.rpartition(':')[2]}"
            f"({shown}): {error}. The number of classes comes first, then model.options by name; "
            "for another order name a function that returns the network"
        ) from None
    return found(classes, **arguments)


def settle(model: Any, settings: Mapping[str, Any], *, where: str) -> None:
    """Give a network the attributes that the pipeline reads.

    Raises:
        ConfigError: the network keeps something else under one of these names.
    """
    for name, value in settings.items():
        own = getattr(model, name, value)
        if not isinstance(own, type(value)) or own != value:
            raise ConfigError(
                f"{where} has an attribute {name} ({type(own).__name__}), under which the pipeline "
                f"keeps {value!r}; rename the attribute on both sides, or give it this value"
            )
        setattr(model, name, value)


def own_settings(pair: PairConfig, *, name: str, classes: int) -> dict[str, Any]:
    """Return the attributes for settle: what the networks of the family carry themselves."""
    return {
        "name": name,
        "classes": classes,
        "heads": pair.heads,
        "head_modules": pair.head_modules,
        "unused": pair.unused,
        "ungrouped": pair.ungrouped,
        # set to True where the auxiliary heads are asked for in evaluation, too
        "aux_in_eval": False,
    }


def named_outputs(
    output: Any, heads: Sequence[str], *, training: bool, where: str
) -> dict[str, Any]:
    """Return a network's outputs by name, ``main`` first, whatever it returns them as.

    Args:
        output: a tensor, a tuple or list (the main one first), or a dict by name.
        heads: ``model.pair.heads``: the names, the main one first.
        training: True asks for all of them; in evaluation the last ones may be absent.
        where: what to call the network in a message.

    Raises:
        ConfigError: outputs and names do not fit.
    """
    if isinstance(output, Mapping):
        found = dict(output)
    elif isinstance(output, tuple | list):
        found = dict(zip(heads, output, strict=False)) if len(output) <= len(heads) else {}
    else:
        found = {"main": output}
    fits = "main" in found and set(found) <= set(heads)
    if not fits or (training and len(found) < len(heads)):
        mode = "training" if training else "evaluation"
        raise ConfigError(
            f"{where} returns {_described(output)} in {mode}; model.pair.heads is "
            f"[{', '.join(heads)}]: name every output there, in this order, the main one `main`"
        )
    return {head: found[head] for head in heads if head in found}


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict with the keys {', '.join(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"{len(output)} outputs"
    return "one tensor"
