"""A run folder keeps what it is given, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.learn.common import tiny
from twofold.errors import UserError
from twofold.run import (
    Run,
    State,
    build,
    check_room,
    load,
    load_model,
    newest_state,
    read_state,
    save_model,
    save_state,
)


def state_of(n: int) -> State:
    return State(
        n, {"weights/w": torch.full((3,), float(n)), "optimizer/w/step": torch.tensor(1.0)}, {"totals": {"n": n}}
    )


def test_newest_state_and_how_many_are_kept(tmp_path: Path) -> None:
    assert newest_state(tmp_path) == (None, [])
    for n in (10, 20, 30):
        save_state(tmp_path, state_of(n), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000020", "000000000030"]
    state, damaged = newest_state(tmp_path)
    assert state is not None and state.n_images == 30 and state.facts["totals"] == {"n": 30} and not damaged
    assert torch.equal(state.tensors["weights/w"], torch.full((3,), 30.0))


@pytest.mark.parametrize("harm", ["bit", "cut", "no facts", "no tensors", "not json"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    for n in (10, 20):
        save_state(tmp_path, state_of(n), keep=3)
    newest = tmp_path / "000000000020"
    tensors, facts = newest / "tensors.safetensors", newest / "state.json"
    if harm == "bit":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif harm == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif harm == "not json":
        facts.write_text("{")
    else:
        (facts if harm == "no facts" else tensors).unlink()
    state, damaged = newest_state(tmp_path)
    assert state is not None and state.n_images == 10
    assert len(damaged) == 1 and "000000000020" in damaged[0]


def test_a_killed_save_leaves_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, state_of(10), keep=2)
    (tmp_path / ".000000000020.1.tmp").mkdir()
    state, damaged = newest_state(tmp_path)
    assert state is not None and state.n_images == 10 and not damaged
    save_state(tmp_path, state_of(30), keep=2)
    assert not list(tmp_path.glob(".*"))


def test_damaged_newer_states_never_push_out_a_good_one(tmp_path: Path) -> None:
    save_state(tmp_path, state_of(100), keep=1)
    (tmp_path / "000000000100/tensors.safetensors").write_bytes(b"damaged")
    save_state(tmp_path, state_of(50), keep=1)
    state, damaged = newest_state(tmp_path)
    assert state is not None and state.n_images == 50 and not damaged


def test_a_state_can_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "state"
    with pytest.raises(UserError, match=r"run@last: no such training state, or not any more; train it first"):
        read_state(folder)
    for n in (10, 20, 30):
        save_state(folder, state_of(n), keep=2)
    assert read_state(folder).n_images == 30 and read_state(folder, "20").n_images == 20
    for missing in ("10", "best-loss", "²"):
        with pytest.raises(UserError, match=rf"run@{missing}: .*there are: 20, 30"):
            read_state(folder, missing)
    (folder / "000000000030/tensors.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"000000000030: damaged state \(its tensors do not match their hash\)"):
        read_state(folder, "30")


def test_room_is_asked_for(tmp_path: Path) -> None:
    check_room(tmp_path, 1000, "")
    with pytest.raises(UserError, match=r"needs [\d,]+ MiB of disk, [\d,]+ are free; nothing was written; tidy up"):
        check_room(tmp_path, 10**18, "tidy up")


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.settings.yaml.7.tmp").touch()
    run = Run.start(tmp_path / "a", tiny())
    run.snapshots.mkdir()
    (run.snapshots / ".best-loss.safetensors.7.tmp").touch()
    run.sweep()
    assert not list(run.path.rglob("*.tmp"))


def test_start_open_and_differences(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "a", tiny())
    assert Run.open(tmp_path / "a").settings() == tiny()
    Run.start(tmp_path / "a", tiny())
    with pytest.raises(UserError, match=r"other settings: train\.lr"):
        Run.start(tmp_path / "a", tiny(lr=1.0))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/photo.png").touch()
    with pytest.raises(UserError, match="not empty"):
        Run.start(tmp_path / "full", tiny())
    with pytest.raises(UserError, match="is a file"):
        Run.start(tmp_path / "full/photo.png", tiny())
    with pytest.raises(UserError, match="did you mean"):
        Run.open(tmp_path / "b")
    with pytest.raises(UserError, match="no settings.yaml"):
        Run.open(tmp_path / "full")
    assert run.result() is None


def test_the_log_survives_a_cut_line_and_is_rewound(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "a", tiny())
    for n in (1, 2, 3):
        run.append_log({"n_images": n})
    with run.log_file.open("a") as file:
        file.write('{"n_im')
    assert [row["n_images"] for row in run.log()] == [1, 2, 3]
    run.rewind_log(2)
    assert run.log_file.read_text() == '{"n_images": 1}\n{"n_images": 2}\n'


def test_one_writer(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "a", tiny())
    with run.lock(), pytest.raises(UserError, match="another process"), Run(run.path).lock():
        pass
    with Run(run.path).lock():
        pass


def test_model_files_are_whole_models(tmp_path: Path) -> None:
    settings = tiny()
    torch.manual_seed(0)
    model = build(settings, (1, 8, 8), ["a", "b"]).eval()
    path = tmp_path / "m.safetensors"
    save_model(path, model.network.state_dict(), model, settings, 5)
    first = path.read_bytes()
    save_model(path, model.network.state_dict(), model, settings, 5)
    assert path.read_bytes() == first  # equal models are equal files
    again = load(path)
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(again.denoise(x, 0.5), model.denoise(x, 0.5), atol=1e-6)
    assert again.class_names == ["a", "b"] and not any(p.requires_grad for p in again.parameters())


def test_a_model_of_another_version(tmp_path: Path) -> None:
    """Settings that this version does not know are told in one line."""
    settings = tiny()
    model = build(settings, (1, 8, 8), list("0123456789"))
    save_model(tmp_path / "a.safetensors", model.network.state_dict(), model, settings, 0)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        facts, tensors = json.loads(file.metadata()["twofold"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts["settings"]["objective"]["novelty"] = 1
    save_file(tensors, tmp_path / "a.safetensors", {"twofold": json.dumps(facts)})
    with pytest.raises(UserError, match=r"settings are of another version of twofold \(objective.*novelty"):
        load_model(tmp_path / "a.safetensors")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"PK not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a twofold model"):
        load_model(path)
    settings = tiny()
    model = build(settings, (1, 8, 8), [])
    weights = dict(model.network.state_dict())
    name, value = weights.popitem()
    save_model(path, weights, model, settings, 0)
    with pytest.raises(UserError, match=r"missing weights.*" + name.rpartition(".")[0]):
        load_model(path)
    save_model(path, {**weights, name: torch.zeros(7, *value.shape)}, model, settings, 0)
    with pytest.raises(UserError, match="the network needs"):
        load_model(path)


@pytest.mark.parametrize(("what", "message"), [("nowhere", "no such run"), ("folder", "holds neither a run")])
def test_load_says_what_is_missing(tmp_path: Path, what: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        load(tmp_path / what)


def test_a_hub_name_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"the hub did not give it.*local folder"):
        load("nobody/nothing-of-the-kind")


def test_a_hub_snapshot_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub: the folder it would have downloaded."""
    settings = tiny()
    model = build(settings, (1, 8, 8), [])
    save_model(tmp_path / "model.safetensors", model.network.state_dict(), model, settings, 0)
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("org/name").shape == (1, 8, 8)
    assert asked[0][0] == "org/name" and not any("bin" in p for p in asked[0][1]["allow_patterns"])


def test_result_json_is_plain(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "a", tiny())
    run.write_result({"metrics": {"loss": 1.0}})
    assert json.loads(run.result_file.read_text()) == run.result() == {"metrics": {"loss": 1.0}}


def test_settings_of_a_run_that_saved_nothing_give_way(tmp_path: Path) -> None:
    run, other = Run.start(tmp_path / "a", tiny()), tiny(lr=1e-3)
    with run.lock():
        run.forget_unbegun(other)  # somebody trains in it
    run.forget_unbegun(tiny())  # it is the same run
    assert run.settings_file.is_file()
    run.forget_unbegun(other)
    assert not run.settings_file.exists()
    run = Run.start(tmp_path / "a", other)
    (run.path / "state" / "000000000064").mkdir(parents=True)
    run.forget_unbegun(tiny())
    assert run.settings_file.is_file()
