"""Settings of `data` that an experiment takes without its name: `labels_per_class=2` is `data.labels_per_class=2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError
from .data import DataSettings, one_choice
from .text import BARE


def in_layer(values: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """A layer of settings with these as settings of `data`. One way to choose labels ends another one's of an earlier
    layer. Raises `UserError` where one of them is said twice, and not the same.
    """
    values, data = dict(values), values.get("data")
    group = dict(data) if isinstance(data, Mapping) else {} if data is None else {BARE: data}
    for name in names:
        value = values.pop(name, None)
        if value is not None and group.get(name, value) != value:
            raise UserError(f"{name}={value}", f"data.{name}={group[name]} is given as well", "keep one of them")
        if value is not None:
            group[name] = value
    group = one_choice(group)
    return {**values, "data": group} if group else values


def in_model(values: Any, names: Sequence[str]) -> Any:
    """The same for what a model of settings is made from. Raises `ValueError`."""
    if not isinstance(values, Mapping) or not any(values.get(name) is not None for name in names):
        return values
    values, data = dict(values), values.get("data")
    if data is None:  # said by the check that follows
        return values
    data = {"source": data} if isinstance(data, str) else data
    data = data.model_dump(exclude_unset=True) if isinstance(data, DataSettings) else dict(data)
    for name in names:
        value = values.pop(name, None)
        if value is None:
            continue
        if data.get(name) not in (None, value):
            raise ValueError(f"{name}={value} and data.{name}={data[name]} disagree; keep one of them")
        data[name] = value
    return {**values, "data": data}
