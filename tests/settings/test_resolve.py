"""Layers of partial settings become complete ones, and every mistake is one line that names its layer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, field_validator, model_validator

from twofold.errors import UserError
from twofold.settings.base import Settings
from twofold.settings.resolve import (
    differences,
    flatten,
    from_yaml,
    merge,
    parse_assignments,
    resolve,
    settings_hash,
    to_yaml,
    write_value,
)
from twofold.settings.train import TrainSettings


class Source(Settings):
    source: str = Field(description="a folder")
    size: tuple[int, int] | None = None


class Square(Settings):
    """Four equal sides."""

    kind: Literal["square"] = "square"
    side: float = Field(1.0, gt=0, le=10, description="length of a side")
    colour: Literal["red", "green"] = "red"


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, ge=0, lt=5, description="radius")
    colour: Literal["red", "green"] = "red"


Shape = Annotated[Square | Circle, Field(discriminator="kind")]


class Step(Settings):
    at: int = Field(ge=0)
    name: str = ""


class Loop(Settings):
    lr: float = Field(1e-4, gt=0, description="learning rate after the warm-up")
    batch_size: int = Field(8, ge=1, description="images per step")
    betas: tuple[float, float] = (0.9, 0.999)
    marks: tuple[int, ...] = Field((), max_length=3)
    fast: bool = False
    name: str | None = None
    limits: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    weights: dict[str, float] = Field({})
    steps: tuple[Step, ...] = ()
    auto: Literal["auto"] | int = "auto"

    @field_validator("name")
    @classmethod
    def _short(cls, value: str | None) -> str | None:
        if value and len(value) > 5:
            raise ValueError(f"{value!r} is too long; use 5 letters")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Loop:
        if self.fast and self.batch_size > 100:
            raise ValueError("fast needs batch_size <= 100; lower it")
        return self


class Experiment(Settings):
    data: Source
    shape: Shape = Square(side=3)
    other: Shape | None = None
    train: Loop = Loop(batch_size=16)


BASE = ("preset small", {"data": "digits"})


def given_words(*words: str, layers: tuple[Any, ...] = (BASE,)) -> Experiment:
    return resolve(Experiment, [*layers, ("command line", parse_assignments(words))])[0]


def test_defaults_and_one_required_setting() -> None:
    assert given_words() == Experiment(data=Source(source="digits"))


def test_later_layers_win_and_origins_are_known() -> None:
    layers = [
        ("preset small", {"data": {"source": "digits", "size": [8, 8]}, "train": {"lr": 1e-3, "fast": True}}),
        ("file a.yaml", {"train": {"lr": 1e-2}}),
        ("command line", {"data": {"source": "mine"}}),
    ]
    found, origin = resolve(Experiment, layers)
    assert (found.train.lr, found.train.fast, found.data.source, found.data.size) == (1e-2, True, "mine", (8, 8))
    assert origin == {
        "data.source": "command line",
        "data.size": "preset small",
        "train.lr": "file a.yaml",
        "train.fast": "preset small",
    }
    assert origin.of("train.batch_size") == "default"
    assert origin.of("train") == "preset small, file a.yaml"


@pytest.mark.parametrize("order", [1, -1])
def test_the_bare_value_of_a_group_goes_with_its_settings(order: int) -> None:
    found = given_words(*["data=digits", "data.size=[8,9]"][::order], layers=())
    assert found.data == Source(source="digits", size=(8, 9))


def test_a_bare_value_keeps_the_rest_of_the_group() -> None:
    assert given_words("data.size=[8,8]", "data=mine").data == Source(source="mine", size=(8, 8))


def test_a_changed_kind_starts_the_group_anew() -> None:
    preset = ("preset p", {"data": "d", "shape": {"kind": "square", "side": 2, "colour": "green"}})
    found, origin = resolve(Experiment, [preset, ("command line", {"shape": {"kind": "circle", "radius": 3}})])
    assert found.shape == Circle(radius=3)
    assert "shape.side" not in origin
    same, origin = resolve(Experiment, [preset, ("command line", {"shape": {"kind": "square", "side": 4}})])
    assert same.shape == Square(side=4, colour="green")
    assert origin["shape.colour"] == "preset p"


def test_the_kind_may_be_left_out_or_stand_for_its_group() -> None:
    assert given_words("shape.colour=green").shape == Square(side=3, colour="green")  # keeps the default's own side
    assert given_words("shape=circle", "shape.radius=2").shape == Circle(radius=2)
    assert given_words("shape=square").shape == Square(side=3)


def test_the_settings_of_a_default_stay_when_others_are_set() -> None:
    assert given_words("train.lr=1").train == Loop(lr=1, batch_size=16)


def test_groups_that_may_be_absent() -> None:
    with_other = given_words("other.kind=circle", "other.radius=2")
    assert with_other.other == Circle(radius=2)
    assert resolve(Experiment, [BASE, ("a", {"other": "circle"}), ("b", {"other": None})])[0].other is None
    again = [BASE, ("a", {"other": None}), ("b", {"other": {"kind": "square"}})]
    assert resolve(Experiment, again)[0].other == Square()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.fast=yes", True),
        ("train.fast=off", False),
        ("train.name=on", "on"),
        ("train.name=007", "007"),
        ("train.name=1.10", "1.10"),
        ("train.name=true", "true"),
        ("train.name=", None),
        ("train.batch_size=1e2", 100),
        ("train.batch_size=1_0", 10),
        ("train.lr=1e-4", 1e-4),
        ("train.betas=0.8,0.9", (0.8, 0.9)),
        ("train.marks=5", (5,)),
        ("train.marks=1, 2", (1, 2)),
        ("train.marks=[]", ()),
        ("train.weights={a: 1, b: 2}", {"a": 1, "b": 2}),
        ("train.weights.a=3", {"a": 3}),
        ("train.auto=7", 7),
        ("train.auto=auto", "auto"),
        ("train.steps=[{at: 1, name: x}]", (Step(at=1, name="x"),)),
    ],
)
def test_values_as_their_settings_take_them(word: str, value: Any) -> None:
    found = getattr(given_words(word).train, word.partition("=")[0].split(".")[1])
    assert found == value
    assert type(found) is type(value)


MISTAKES = [
    ("train.batch_sise=3", "train.batch_sise (command line): unknown setting; did you mean 'batch_size'?"),
    ("lr=1e-4", "lr (command line): unknown setting; did you mean 'train.lr'?"),
    ("colour=red", "colour (command line): unknown setting; did you mean 'shape.colour' or 'other.colour'?"),
    ("batchsize=4", "batchsize (command line): unknown setting; did you mean 'train.batch_size'?"),
    ("train.learning_rate=1", "train.learning_rate (command line): unknown setting; did you mean 'train.lr'?"),
    ("data.xyz=1", "data.xyz (command line): unknown setting; valid: source, size"),
    ("xyz.abc=1", "xyz (command line): unknown setting; valid: data, shape, other, train"),
    ("shape.radius=1", "shape.radius (command line): unknown setting of shape.kind=square; it belongs to kind=circle"),
    ("shape=triangle", "shape.kind='triangle' (command line): must be one of square, circle"),
    ("shape.kind=circel", "shape.kind='circel' (command line): must be one of square, circle; did you mean 'circle'?"),
    ("shape.kind=", "shape.kind=null (command line): must be one of square, circle"),
    ("shape=3", "shape.kind='3' (command line): must be one of square, circle"),
    ("other.colour=red", "other (command line): its kind is not set; add other.kind=square|circle"),
    ("train=3", "train=3 (command line): a group of settings; set one of: lr, batch_size, betas, marks, fast, name"),
    ("train=", "train=null (command line): must be a group of settings"),
    ("train.lr.x=3", "train.lr.x (command line): unknown setting; train.lr is a single value, a number > 0"),
    ("train.lr={}", "train.lr (command line): is given settings of its own; train.lr is a single value, a number > 0"),
    ("train.lr=fast", "train.lr='fast' (command line): must be a number > 0; learning rate after the warm-up"),
    ("train.lr=0", "train.lr=0 (command line): must be a number > 0; learning rate after the warm-up"),
    ("train.lr=", "train.lr=null (command line): must be a number > 0; learning rate after the warm-up"),
    ("train.lr=1e999", "train.lr=inf (command line): must be a finite number; learning rate after the warm-up"),
    ("train.batch_size=1.5", "train.batch_size=1.5 (command line): must be a whole number >= 1; images per step"),
    ("train.batch_size=[1]", "train.batch_size=[1] (command line): must be a whole number >= 1; images per step"),
    ("shape.side=11", "shape.side=11 (command line): must be a number > 0 and <= 10; length of a side"),
    ("shape.colour=gren", "shape.colour='gren' (command line): must be one of red, green; did you mean 'green'?"),
    ("train.betas=1", "train.betas=1 (command line): must be a list of 2 numbers"),
    ("train.betas=[1,x]", "train.betas=[1, 'x'] (command line): must be a list of 2 numbers"),
    (
        "train.marks=[1,2,3,4]",
        "train.marks=[1, 2, 3, 4] (command line): must be a list of whole numbers of length <= 3",
    ),
    ("train.limits=[0]", "train.limits=[0] (command line): must be a list of entries, each a whole number >= 1"),
    ("train.fast=perhaps", "train.fast='perhaps' (command line): must be true or false"),
    ("train.name=[1]", "train.name=[1] (command line): must be text or null"),
    ("train.auto=x", "train.auto='x' (command line): must be auto or a whole number"),
    ("train.weights=3", "train.weights=3 (command line): must be a mapping"),
    ("train.weights={a: b}", "train.weights={'a': 'b'} (command line): must be a mapping"),
    ("train.steps=[{at: 1, nam: x}]", "train.steps[0].nam (command line): unknown setting; did you mean 'name'?"),
    ("train.steps=[{at: -1}]", "train.steps[0].at=-1 (command line): must be a whole number >= 0"),
    ("train.steps=[{}]", "train.steps[0].at: not set; give train.steps[0].at=..."),
    ("train.name=abcdef", "train.name='abcdef' (command line): 'abcdef' is too long; use 5 letters"),
    ("data.size=[1,2,3]", "data.size=[1, 2, 3] (command line): must be a list of 2 whole numbers or null"),
    ("data.source=[x]", "data.source=['x'] (command line): must be text; a folder"),
]


@pytest.mark.parametrize(("word", "message"), MISTAKES)
def test_mistakes(word: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        given_words(word)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    if not message.startswith("train=3"):  # which goes on with the other names
        assert str(error.value) == message


def test_what_is_missing_is_asked_for_by_its_short_form() -> None:
    with pytest.raises(UserError) as error:
        given_words(layers=())
    assert str(error.value) == "data: not set; give data=...: a folder"
    with pytest.raises(UserError) as error:
        given_words("data.size=[1,1]", layers=())
    assert str(error.value) == "data.source: not set; give data.source=...: a folder"


def test_two_values_for_one_setting() -> None:
    with pytest.raises(UserError) as error:
        given_words("data=a", "data.source=b")
    assert str(error.value) == "data='a' (command line): data.source is given as well ('b'); keep one of them"


def test_settings_that_contradict_each_other_name_their_layers() -> None:
    layers = [("preset p", {"data": "d", "train": {"fast": True}}), ("command line", {"train": {"batch_size": 200}})]
    with pytest.raises(UserError) as error:
        resolve(Experiment, layers)
    assert str(error.value) == "train (preset p, command line): fast needs batch_size <= 100; lower it"


def test_an_error_names_the_layer_the_value_came_from() -> None:
    for layer, words in (("preset foo", ()), ("file x.yaml", ("train.fast=true",))):
        with pytest.raises(UserError, match=rf"^train\.lr='fast' \({layer}\): must be a number"):
            given_words(*words, layers=(BASE, (layer, {"train": {"lr": "fast"}})))


def test_how_many_other_mistakes_there_are() -> None:
    with pytest.raises(UserError) as error:
        given_words("train.lr=x", "train.batch_size=y", "shape.side=z")
    assert str(error.value).endswith("(2 more after this one)")


def test_a_flat_name_in_a_file_is_shown_nested() -> None:
    with pytest.raises(UserError) as error:
        resolve(Experiment, [("file x.yaml", {"train.lr": 1})])
    assert str(error.value) == "train.lr (file x.yaml): unknown setting; write it nested: train: {lr: ...}"


def test_long_values_are_shortened() -> None:
    with pytest.raises(UserError) as error:
        given_words("train.lr=" + "x" * 500)
    assert len(str(error.value)) < 200


def test_an_invalid_default_is_our_mistake_not_the_users() -> None:
    class Wrong(Settings):
        side: int = "x"  # type: ignore[assignment]

    with pytest.raises(ValidationError):
        resolve(Wrong, [])


def test_merge_does_not_ask_for_what_is_missing() -> None:
    tree, origin = merge(Experiment, [("a", {"shape": {"side": 2}}), ("b", {"shape": "circle"})])
    assert tree == {"shape": {"kind": "circle"}}
    assert origin == {"shape.kind": "b"}


experiments = st.builds(
    Experiment,
    data=st.builds(Source, source=st.text(min_size=1), size=st.none() | st.tuples(st.integers(), st.integers())),
    shape=st.builds(Square, side=st.floats(0.1, 10)) | st.builds(Circle, radius=st.floats(0, 4)),
    other=st.none() | st.builds(Circle, colour=st.sampled_from(["red", "green"])),
    train=st.builds(
        Loop,
        lr=st.floats(1e-300, 1e300),
        name=st.none() | st.text(max_size=5),
        marks=st.lists(st.integers(), max_size=3).map(tuple),
        weights=st.dictionaries(st.text(), st.floats(0, allow_infinity=False), max_size=2),  # -0.0 equals 0.0
    ),
)


@settings(max_examples=60, deadline=None)
@given(experiments)
def test_yaml_gives_equal_settings_back(experiment: Experiment) -> None:
    assert from_yaml(Experiment, to_yaml(experiment, "twofold train small\nsecond line"), "x") == experiment


@settings(max_examples=60, deadline=None)
@given(experiments)
def test_every_setting_can_be_given_as_a_word(experiment: Experiment) -> None:
    tree = experiment.model_dump(mode="json")
    words = [
        f"{path}={write_value(value)}" for path, value in flatten(tree).items() if not path.startswith("train.weights.")
    ]
    words += [f"train.weights={write_value(tree['train']['weights'])}"] if tree["train"]["weights"] else []
    assert given_words(*words, layers=()) == experiment


@settings(max_examples=60, deadline=None)
@given(experiments, experiments)
def test_equal_settings_equal_hash_no_difference(a: Experiment, b: Experiment) -> None:
    assert differences(a, a) == []
    assert (a == b) == (differences(a, b) == []) == (settings_hash(a) == settings_hash(b))


def test_the_hash_is_stable() -> None:
    class Small(Settings):
        b: float = 0.5
        a: str = "x"

    assert settings_hash(Small()) == "b711da6b"  # printf '{"a":"x","b":0.5}' | sha256sum
    assert settings_hash(Small(b=0.25)) != settings_hash(Small())


def test_differences_are_dotted_paths() -> None:
    a, b = given_words("shape=circle"), given_words("train.lr=5")
    assert differences(a, b) == ["shape.kind", "shape.radius", "train.lr", "shape.side"]
    assert differences({"a": None}, {}) == ["a"]


def test_a_mistake_inside_a_group_of_kinds_is_one_line() -> None:
    """A setting may be called like a kind (a trunk has a `unet`): the name of the branch is not taken for it."""
    layers = [("test", {"data": "digits", "network": {"kind": "unet", "channels": "abc"}})]
    with pytest.raises(UserError, match=r"^network.channels='abc' \(test\): must be a whole number"):
        resolve(TrainSettings, layers)
