"""The help text names every setting of every kind, with its default."""

from __future__ import annotations

import importlib

import pytest
from pydantic import Field

from twofold.settings.base import Settings
from twofold.settings.data import DataSettings
from twofold.settings.describe import describe, describe_text
from twofold.settings.evaluate import EvaluateSettings
from twofold.settings.network import ConvNetSettings, UNetSettings
from twofold.settings.shape import group_of, settings_of
from twofold.settings.train import TrainSettings

MODELS = [
    TrainSettings,
    DataSettings,
    EvaluateSettings,
    importlib.import_module("twofold.settings.sample").SampleSettings,
]


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_there_with_its_help(model: type[Settings]) -> None:
    text = " ".join(describe_text(model, 200).split())
    entries = {entry.path for entry in describe(model)}
    for path, field in settings_of(model):
        inner = [p for p in entries if p == path or p.startswith(f"{path}.")]
        assert inner, f"{path} is not in the help"
        if path in entries and field.description and group_of(field.annotation) is None:  # a trunk's head is a word
            assert f"{path}=" in text
            assert " ".join(field.description.split()) in text


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_has_a_help(model: type[Settings]) -> None:
    assert [entry.path for entry in describe(model) if not entry.help] == []


def test_a_setting_two_kinds_have_is_there_once_for_each() -> None:
    found = {entry.kind: entry for entry in describe(TrainSettings) if entry.path == "network.channels"}
    assert set(found) == {"unet", "convnet", "unet_encoder", "autoencoder", "iddm", "rdn"}
    for kind, model in (("unet", UNetSettings), ("convnet", ConvNetSettings)):
        field = model.model_fields["channels"]
        assert (found[kind].default, found[kind].help) == (str(field.default), field.description)


def test_what_an_entry_says() -> None:
    class Inner(Settings):
        size: int = Field(3, ge=1, lt=10, description="edge")
        mode: str = Field("on", description="how")

    class Outer(Settings):
        need: float = Field(description="must be given")
        inner: Inner = Inner(size=4)
        limit: int | None = Field(None, description="most; null = none")
        default_said: int | None = Field(None, description="most; default: all")
        numbers: tuple[int, ...] = Field((1, 2), description="some")

    assert [entry.line() for entry in describe(Outer)] == [
        ("need=NUMBER", "must be given (required)"),
        ("inner.size=INT", "edge (>= 1, < 10, default 4)"),
        ("inner.mode=TEXT", "how (default on)"),
        ("limit=INT", "most; null = none"),
        ("default_said=INT", "most; default: all"),
        ("numbers=[INT,...]", "some (default [1, 2])"),
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_fit_the_terminal(width: int) -> None:
    lines = describe_text(TrainSettings, width).splitlines()
    too_long = [line for line in lines if len(line) > max(width, 75) and "|" not in line]
    assert too_long == []
