"""One side's part of a replay: the layer of a failure case alone. Started by pipeline/replay.py.

    python -m pipeline.replay_side SIDE CASE_FOLDER RESULT.npz

The network is built for its layer only: no pipeline, no inputs but the case's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.config_sections import ModelConfig
from common.errors import InputError
from pipeline.cases import Array, build_network
from pipeline.failure import FailureCase, read_case
from pipeline.record import load_side
from pipeline.records import write_arrays

VALUE = "value"
"""Key of the result."""


def relative_key(case: FailureCase) -> str:
    """Return the trace key of the case's tensor when its layer is the network."""
    cut, layer = str(case.settings["cut"]), str(case.settings["layer"])
    head, _, rest = cut.rpartition("put/")
    if head not in ("in", "out", "gradient/in", "gradient/out"):
        return cut
    call = str(case.settings["call"])
    if rest == call or (rest.startswith((f"{call}/", f"{call}.")) and not _is_child(case, rest)):
        return f"{head}put/{rest.removeprefix(call)}"
    return f"{head}put/{rest.removeprefix(f'{layer}.') if layer else rest}"


def _is_child(case: FailureCase, rest: str) -> bool:
    """Tell whether a name below the layer's is a sub-layer's, not a part of its own output."""
    layer = str(case.settings["layer"])
    name = rest.removeprefix(f"{layer}.") if layer else rest
    names = [key.partition("/")[2] for key in case.arrays if key.startswith(("child/", "handed/"))]
    return name in names


def rerun(side: Any, case: FailureCase) -> Array:
    """Compute the tensor of a layer's case anew.

    Raises:
        InputError: the network has no such layer.
    """
    settings = case.settings
    side.backend.set_default_dtype(case.dtype)
    model = build_network(side, ModelConfig(**settings["model"]))
    layers = side.forcing.named_layers(model)
    name = str(settings["layer"])
    if name not in layers:
        raise InputError(f"{settings['model']['name']} has no layer {name!r} any more")
    side.backend.disable_dropout(model)
    _load(side, model, case, name)
    layer = layers[name]
    layer.train() if _trains(side, case) else layer.eval()
    if name == "":
        layer.aux_in_eval = True
    return _computed(side, model, layer, case)


def _trains(side: Any, case: FailureCase) -> bool:
    """Tell the layer's mode: a training loop can have left it in the wrong one."""
    return bool(case.spec[side.name].get("training", case.mode == "train"))


def _load(side: Any, model: Any, case: FailureCase, layer: str) -> None:
    state = dict(side.backend.state_arrays(model))
    for key, array in case.arrays.items():
        kind, _, name = key.partition("/")
        if kind in ("parameter", "buffer"):
            state[f"{layer}.{name}" if layer else name] = array
    side.backend.load_arrays(model, state)


def _given(case: FailureCase) -> dict[str, Array]:
    """Return what the layer's own arithmetic is forced by: its sub-layers' inputs and outputs."""
    given: dict[str, Array] = {}
    for key, array in case.arrays.items():
        gradient = "gradient/" if key.startswith("gradient/") else ""
        kind, _, name = key.removeprefix("gradient/").partition("/")
        if kind in ("child", "handed"):
            given[f"{gradient}{'output' if kind == 'child' else 'input'}/{name}"] = array
        elif kind == "input":
            given[f"input//{name}"] = array
    return given


def _computed(side: Any, model: Any, layer: Any, case: FailureCase) -> Array:
    graph = case.kind in ("layer_gradient", "parameter_gradient")
    inputs: dict[int, Any] = {
        int(i): tuple(value) if isinstance(value, list) else value
        for i, value in case.settings["arguments"].items()
    }
    for key, array in case.arrays.items():
        if key.startswith("input/"):
            inputs[int(key.partition("/")[2])] = side.backend.to_tensor(array)
    positions = [inputs[i] for i in sorted(inputs)]
    with (
        nullcontext() if graph else side.backend.no_grad(),
        side.forcing.traced(layer, reference=_given(case), graph=graph) as trace,
    ):
        output = layer(*positions)
        if graph:
            total = trace.with_reference_gradients(_weighed(side, output, case))
            total.backward()
    found: Mapping[str, Array] = {**trace.values, **(trace.gradients() if graph else {})}
    key = relative_key(case)
    if key.startswith("grad/"):
        found = {f"grad/{name}": array for name, array in side.backend.gradients(model).items()}
    elif key.startswith("buffer/"):
        found = {f"buffer/{n}": array for n, array in side.backend.state_arrays(model).items()}
    like = case.arrays["reference"]
    # a gradient that does not come is none
    return found.get(key, like * 0)


def _weighed(side: Any, output: Any, case: FailureCase) -> Any:
    """Return a scalar whose gradient at the layer's output is the case's."""
    if isinstance(output, Mapping):
        parts = {f"/{part}": tensor for part, tensor in output.items()}
    elif isinstance(output, (tuple, list)):
        parts = {f"/{part}": tensor for part, tensor in enumerate(output)}
    else:
        parts = {"": output}
    total = side.backend.leaf_tensor(case.arrays["reference"].flat[:1]).sum() * 0.0
    for part, tensor in parts.items():
        gradient = case.arrays.get(f"output_gradient{part}")
        if gradient is not None and side.backend.has_graph(tensor):
            total = total + (tensor * side.backend.to_tensor(gradient)).sum()
    return total


def main(arguments: list[str] | None = None) -> int:
    """Compute and write the result; 2 when the case cannot be replayed, with the reason."""
    name, folder, result = sys.argv[1:] if arguments is None else arguments
    case = read_case(Path(folder))
    side = load_side("torch" if name == "torch" else "paddle")
    side.backend.set_device("cpu")
    faults = case.settings.get("inject") if side.name == "paddle" else None
    try:
        if faults:
            # the case is of a verification with deliberate faults
            from pipeline.faults import inject

            with inject(str(faults), side):
                value = rerun(side, case)
        else:
            value = rerun(side, case)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    write_arrays(Path(result), {VALUE: value})
    return 0


if __name__ == "__main__":
    sys.exit(main())
