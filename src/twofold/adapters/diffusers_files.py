"""Files in diffusers' layout: a config.json with the weights beside it, read strictly.

Weights come from safetensors only: a pickle (.bin) is never opened.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, nearest, some
from ..weightsfile import read_tensors

WEIGHTS = "diffusion_pytorch_model"
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
NOTHING: tuple[Any, ...] = (None, False, "default")  # what a key may say that the class does not have any more


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `UserError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(str(path), "not a JSON object")
    return content


def class_name(folder: Path) -> str:
    """`_class_name` of the folder's config.json. Raises `UserError` where there is none."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(str(folder), "no config.json here", "give the folder of a diffusers pipeline or model")
    name = read_json(config).get("_class_name")
    if not isinstance(name, str):
        raise UserError(str(config), "no _class_name in it", "only models in diffusers' layout can be read")
    return name


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors beside a config.json, whole or in shards, under their present names.

    Raises `UserError` where there is no safetensors file, or only a pickle, which could run code.
    """
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        names = [f"{WEIGHTS}.safetensors"]
    weights: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise UserError(str(folder), f"no {name} here", _other_weights(folder))
        weights |= read_tensors(path)
    return {present_name(name): tensor for name, tensor in weights.items()}


def _other_weights(folder: Path) -> str:
    """What to do about the weights that are there instead."""
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        return f"{pickled[0]} is a pickle and is not opened; save it with diffusers' safe_serialization=True"
    found = ", ".join(path.name for path in sorted(folder.glob("*.safetensors"))[:3])
    return f"rename {found}" if found else "copy the folder anew"


def present_name(name: str) -> str:
    """Attention parameters under the names they have since diffusers 0.17."""
    if ".attentions." in name:
        for old, new in OLD_ATTENTION.items():
            name = name.replace(old, new)
    return name


def check_weights(
    where: str,
    expected: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    hint: str = "config and weights disagree",
) -> None:
    """Raises `UserError` naming the missing, surplus or misshapen weights."""
    problems = {
        "missing": [name for name in expected if name not in weights],
        "surplus": [name for name in weights if name not in expected],
    }
    for problem, keys in problems.items():
        if keys:
            raise UserError(f"weights of {where}", f"{len(keys)} {problem}: {some(keys)}", hint)
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            what = f"{name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f"weights of {where}", what, hint)


def read_model(folder: Path, kind: type[Any]) -> Any:
    """The peer library's own module of this class with the folder's weights, float32 or better, in eval mode.

    Raises `UserError` for options the class does not know and for weights that are not exactly those it has.
    """
    from accelerate import init_empty_weights

    config = read_json(folder / "config.json")
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    options = {key: value for key, value in config.items() if key in known}
    for key, value in config.items():
        if key not in known and not key.startswith("_") and value not in NOTHING:
            where = f"{folder / 'config.json'}: {key}={value}"
            raise UserError(where, f"{kind.__name__} has no such option", nearest(key, known))
    weights = read_weights(folder)
    try:
        with init_empty_weights(include_buffers=False):  # no random numbers are drawn
            model = kind(**options)
    except (TypeError, ValueError, NotImplementedError, ZeroDivisionError) as error:
        raise UserError(str(folder / "config.json"), f"{kind.__name__} refuses it ({error})") from error
    check_weights(str(folder), model.state_dict(), weights)
    exact = {name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for name, tensor in weights.items()}
    model.load_state_dict(exact, assign=True)
    return model.eval().requires_grad_(False)
