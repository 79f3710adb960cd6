"""What a guide is asked for: a class for every image, or which attributes it is to have and which not.

    class       (B,) int64, -1 = nothing is asked for
    attributes  (B, K) in 1 (there), 0 (absent), -1 (left free), K questions that are answered each by itself

In words an attribute target is its known names joined by ";", with "not " before those that are absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, nearest

JOIN, ABSENT = ";", "not "
SYNTAX = f"names are joined by {JOIN!r}, with {ABSENT!r} before what is absent"


def log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """log p(target) of every image, (B,); 0 where nothing is asked for. logits: (B, K). target: (B,) or (B, K).

    Of a class by the softmax; of attributes the sum over the known ones of log sigmoid(+-logit).
    """
    if target.ndim == 1:
        chosen = torch.log_softmax(logits, 1).gather(1, target.clamp(min=0)[:, None])[:, 0]
        return chosen.masked_fill(target < 0, 0.0)
    each = F.logsigmoid(torch.where(target == 1, logits, -logits))
    return each.masked_fill(target < 0, 0.0).sum(1)


def probability(logits: Tensor, target: Tensor) -> Tensor:
    """p(target) of every image, (B,); 1 where nothing is asked for. Of attributes: the geometric mean of the known
    ones', which does not fall as more of them are asked for.
    """
    log_p = log_probability(logits, target)
    return log_p.exp() if target.ndim == 1 else (log_p / (target >= 0).sum(1).clamp(min=1)).exp()


def asked(target: Tensor) -> Tensor:
    """For which images anything is asked for, (B,) bool."""
    return target >= 0 if target.ndim == 1 else (target >= 0).any(1)


def only(label: Tensor, questions: int) -> Tensor:
    """Attribute targets (B, K) that ask for one attribute each: label (B,) int64, -1 = none at all."""
    target = torch.full((len(label), questions), -1, dtype=torch.int64, device=label.device)
    rows = (label >= 0).nonzero()[:, 0]
    target[rows, label[rows]] = 1
    return target


def read_target(text: str, names: Sequence[str], where: str = "") -> list[int]:
    """The attribute target, K of 1, 0 and -1, that this text describes: "Smiling;not Male".

    names: of the K attributes. where: how errors name it. Raises `UserError` for a name that is not among them, for one
    that is wanted and unwanted, and for none.
    """
    names, where = list(names), where or f"label={text}"
    target = [-1] * len(names)
    for part in filter(None, (part.strip() for part in text.split(JOIN))):
        absent = part not in names and part.startswith(ABSENT)
        name = part.removeprefix(ABSENT).strip() if absent else part
        if name not in names:
            raise UserError(where, f"no attribute {name!r}", f"{nearest(name, names)}; {SYNTAX}")
        k, value = names.index(name), int(not absent)
        if target[k] == 1 - value:
            raise UserError(where, f"asks for {name} and for its absence", "leave one of them out")
        target[k] = value
    if max(target, default=-1) < 0:
        raise UserError(where, "names no attribute", SYNTAX)
    return target


def target_text(target: Sequence[int], names: Sequence[str]) -> str:
    """The text of an attribute target (K,): what `read_target` reads; "" where nothing is asked for."""
    known = zip(target, names, strict=True)
    return JOIN.join(name if value == 1 else ABSENT + name for value, name in known if value >= 0)
