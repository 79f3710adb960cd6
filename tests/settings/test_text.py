"""Settings as text: key=value words and YAML."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import UserError
from twofold.settings.text import as_text, dump_yaml, load_yaml, parse_assignments, read_text, read_value, write_value

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
flat_values = scalars | st.lists(scalars, max_size=4)
trees = st.recursive(
    flat_values, lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def words(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += words(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={write_value(value)}")
    return found


@settings(max_examples=60, deadline=None)
@given(values)
def test_a_written_value_is_read_back(value: Any) -> None:
    again = read_value(write_value(value))
    assert again == value
    assert type(again) is type(value) or isinstance(again, type(value))


@settings(max_examples=60, deadline=None)
@given(trees, st.randoms())
def test_assignments_round_trip_in_any_order(tree: dict[str, Any], random: Any) -> None:
    shuffled = words(tree)
    random.shuffle(shuffled)
    assert parse_assignments(shuffled) == tree


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts, values, max_size=5), texts)
def test_yaml_round_trips_and_its_header_is_a_comment(tree: dict[str, Any], header: str) -> None:
    assert load_yaml(dump_yaml(tree, header), "x") == tree


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, values, max_size=5))
def test_our_yaml_means_the_same_to_other_readers(tree: dict[str, Any]) -> None:
    assert yaml.safe_load(dump_yaml(tree)) == (tree or {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-3", -3),
        ("+2", 2),
        (".5", 0.5),
        ("2.", 2.0),
        ("1.5e+3", 1500.0),
        ("true", True),
        ("false", False),
        ("", None),
        ("null", None),
        ("~", None),
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("True", "True"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("0x10", "0x10"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("e5", "e5"),
        ("nan", "nan"),
        ("a: b # c", "a: b # c"),
        ("[1, 2e-3, on, null]", [1, 2e-3, "on", None]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ("[]", []),
        ('"7"', "7"),
        ("'it''s'", "it's"),
        ("a=b", "a=b"),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    found = parse_assignments([f"key={text}"])["key"]
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)
    assert isinstance(found, str) == isinstance(value, str)


@pytest.mark.parametrize("text", ["007", "1.10", "1e5", "12", "true", "-0"])
def test_text_is_kept_as_it_was_written(text: str) -> None:
    assert as_text(read_value(text)) == text


def test_a_number_too_large_is_infinite_not_an_error() -> None:
    assert math.isinf(read_value("1e999"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_bare_value_stays_beside_the_settings_of_its_group(order: int) -> None:
    assert parse_assignments(["data=digits", "data.size=8"][::order]) == {"data": {"": "digits", "size": 8}}
    assert parse_assignments(["a.b.c=1", "a.b=x", "a=y"][::order]) == {"a": {"": "y", "b": {"": "x", "c": 1}}}


def test_mappings_are_merged_and_repetition_is_fine() -> None:
    assert parse_assignments(["a={b: 1}", "a.c=2", "a.c=2"]) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lr"], "lr: not a setting; settings are written key=value: lr=VALUE"),
        (["--lr"], "--lr: not a setting; settings are written key=value: lr=VALUE"),
        (["=3"], "=3: '' cannot be the name of a setting; write group.name=value"),
        (["a..b=3"], "a..b=3: 'a..b' cannot be the name of a setting; write group.name=value"),
        (["a b=3"], "a b=3: 'a b' cannot be the name of a setting; write group.name=value"),
        (["a=1", "a=2"], "a=2: the same setting was also given as 1; keep one of them"),
        (["a=x", "a.b=1", "a=y"], "a=y: the same setting was also given as x; keep one of them"),
        (["a={b: 1}", "a.b=2"], "a.b=2: the same setting was also given as 1; keep one of them"),
    ],
)
def test_mistakes_in_words(given: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_assignments(given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("word", "start"),
    [
        ("m=[1,2", "m=[1,2: not a complete list ("),
        ("m={a: 1", "m={a: 1: not a complete mapping ("),
        ("m='x", "m='x: not a complete quoted text ("),
        ("m={a: 1, a: 2}", "m={a: 1, a: 2}: not a complete mapping ('a' is given twice)"),
    ],
)
def test_unfinished_values(word: str, start: str) -> None:
    with pytest.raises(UserError) as error:
        parse_assignments([word])
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f.yaml line 2: not valid YAML: 'a' is given twice"),
        ("a: [1\n", "f.yaml line 2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n- 2\n", "f.yaml: holds no settings; write one `name: value` a line"),
        ("digits", "f.yaml: holds no settings; write one `name: value` a line"),
        ("a: !!python/object:os.system x", "f.yaml line 1: not valid YAML: could not determine a constructor"),
    ],
)
def test_mistakes_in_yaml(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_yaml(text, "f.yaml")
    assert str(error.value).startswith(message)


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert load_yaml("# nothing\n", "x") == {}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file; settings are YAML"):
        read_text(tmp_path / "b.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        read_text(tmp_path / "none.yaml")
