"""Files of weights: what is read of them, and that nothing else is let through."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from twofold.errors import UserError, first_line, some
from twofold.weightsfile import read_tensors

WEIGHT = {"a.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHT,
        {"module.a.weight": WEIGHT["a.weight"]},
        {"state_dict": WEIGHT, "epoch": 3},
        {"model": {"a.weight": torch.zeros(1)}, "ema": WEIGHT},  # the averaged ones
        {**WEIGHT, "step": 7},
    ],
)
def test_state_dicts_and_training_states(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    read = read_tensors(tmp_path / "x.pt")
    assert list(read) == ["a.weight"] and torch.equal(read["a.weight"], WEIGHT["a.weight"])


def test_both_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    torch.save(WEIGHT, tmp_path / "x.pth")
    save_file(WEIGHT, tmp_path / "x.safetensors")
    one, other = (read_tensors(tmp_path / f"x.{suffix}") for suffix in ("pth", "safetensors"))
    assert one.keys() == other.keys() and torch.equal(one["a.weight"], other["a.weight"])


def test_a_command_line_is_taken_only_where_it_is_expected(tmp_path: Path) -> None:
    torch.save({"ema": WEIGHT, "args": Namespace(lr=1e-4)}, tmp_path / "x.pt")
    assert list(read_tensors(tmp_path / "x.pt", command_line=True)) == ["a.weight"]
    with pytest.raises(UserError, match="holds more than tensors, which is not opened; save the state dict alone"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_file_of_weights(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    for content in (None, b"", b"hello world\n" * 3):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.\w+: cannot be read as weights \(.+\); it comes from there") as caught:
            read_tensors(path, "it comes from there")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": 3}, {"model": {}}, torch.zeros(2)])
def test_files_without_named_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_tensors(tmp_path / "x.pt")


def test_some_names_and_first_lines() -> None:
    assert some(["a", "b", "c"]) == "a, b, c" and some(list("abcdefgh")) == "a, b, c and 5 more" and some([]) == ""
    assert first_line(ValueError("\none\ntwo")) == "one" and first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 500))) == 120
