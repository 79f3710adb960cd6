"""Fine-tuning: the settings that a run takes over from the model it starts from; see `start` for the weights.

Both are taken once. From then on the run stands by itself: its settings are complete, its weights are its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..codec import PixelCodec
from ..denoiser import Denoiser, NetworkDenoiser
from ..errors import UserError
from ..networks import NETWORKS
from ..networks.rdn import Upscaler
from ..networks.students import Student
from ..networks.trunk import middle_layer
from ..networks.unet import UNet
from ..recognize.classifier import JointClassifier, NetworkClassifier
from ..run import Run, load, newest_probe
from ..settings.network import TapHeadSettings, TrunkSettings, UNetSettings
from ..settings.resolve import differences, flatten, resolve
from ..settings.student import StudentSettings
from ..settings.train import TrainSettings

S = TypeVar("S", bound=BaseModel)
OWN_UNET = {"dropout", "checkpoint"}  # what a network that is trained further may have otherwise
OWN_NETWORK = OWN_UNET | {"classes", "augment_dim", "learned_variance", "head"}  # and a whole denoiser; see `start`
OWN_NOISE = {"p_mean", "p_std", "training"}  # likewise: how noise levels are drawn in training, not what they mean


def inherit(settings: TrainSettings, shape: tuple[int, int, int], earlier: Run) -> TrainSettings:
    """The settings with the network and the noise family of `init_from` (or `resume_from`) filled in.

    shape: of the data's images. earlier: the folder that is trained in; if it holds a state of the same run, the
    source is not read again (it may be gone). Raises `UserError` where source, data and settings disagree.
    """
    if settings.resume_from is None and settings.init_from is None:
        return settings
    if isinstance(settings.network, StudentSettings):
        return _student(settings, shape, earlier)
    if not isinstance(settings.network, TrunkSettings):
        return _whole(settings, shape, earlier)
    return _trunk(settings, shape, earlier)


def _whole(settings: TrainSettings, shape: tuple[int, int, int], earlier: Run) -> TrainSettings:
    """A network of the same kind as the source's."""
    begun = _begun(settings, earlier)
    if begun is not None:
        where, found = str(settings.resume_from or settings.init_from), (begun.network, begun.noise)
    else:
        where, source = str(settings.init_from), source_model(str(settings.init_from), settings)
        network = _at_size(where, source.network.settings, source.shape, shape)  # type: ignore[arg-type]
        found = network, source.family.settings if source.family else settings.noise
    given = settings.network if "network" in settings.model_fields_set else None
    found = _with_head(found[0], given, settings), found[1]
    own = OWN_NETWORK if settings.resume_from is None else OWN_UNET
    update: dict[str, Any] = {"network": _taken(given, found[0], own, "network", where)}
    if settings.resume_from is None and (given is None or "classes" not in given.model_fields_set):
        update["network"] = update["network"].model_copy(update={"classes": None})  # those of the data
    given_noise = settings.noise if "noise" in settings.model_fields_set else None
    update["noise"] = _taken(given_noise, found[1], OWN_NOISE, "noise", where)
    changed = settings.model_copy(update=update)
    return resolve(TrainSettings, [(f"with what {where} gives", changed.model_dump(mode="json"))])[0]


def _student(settings: TrainSettings, shape: tuple[int, int, int], earlier: Run) -> TrainSettings:
    """The backbone of the source, where none is given; the head is this run's own. Images of any size will do.

    A run that branches off, or whose folder holds a state, says what it is by itself.
    """
    assert isinstance(settings.network, StudentSettings)
    if settings.init_from is None or "backbone" in settings.network.model_fields_set:
        return settings
    begun = _begun(settings, earlier)
    if begun is not None and isinstance(begun.network, StudentSettings):
        network = settings.network.model_copy(update={"backbone": begun.network.backbone})
        return settings.model_copy(update={"network": network})
    source = student_model(settings.init_from)
    if source.shape[0] != shape[0]:
        what = f"sees {source.shape[0]} channels, the data has {shape[0]}"
        raise UserError(f"init_from={settings.init_from}", what, f"set data.channels={source.shape[0]}")
    network = settings.network.model_copy(update={"backbone": source.network.settings.backbone})
    return settings.model_copy(update={"network": network})


def student_model(source: str) -> Any:
    """The student to start from, whatever its head. Raises `UserError` for another model."""
    model: Any = load(*place_of(source))
    if not isinstance(getattr(model, "network", None), Student):
        raise UserError(f"init_from={source}", "is no student network", "give the run of a distilled backbone")
    return model


def _with_head(network: Any, given: Any, settings: TrainSettings) -> Any:
    """The network with a head where a joint model is made of it: the one given, its own, or one of the usual kind."""
    if not isinstance(network, UNetSettings) or settings.resume_from is not None:
        return network
    joint = settings.objective.kind == "joint"
    head = getattr(given, "head", None) or network.head or TapHeadSettings()
    return network.model_copy(update={"head": head if joint else None})


def _begun(settings: TrainSettings, earlier: Run) -> TrainSettings | None:
    """The settings that this run began with if it has a state, or those of the run it branches off."""
    if any((earlier.path / "state").glob("[0-9]*")):
        begun = earlier.settings()
        if (begun.init_from, begun.resume_from) == (settings.init_from, settings.resume_from):
            return begun
    if settings.resume_from is None:
        return None
    folder = place_of(settings.resume_from)[0]
    begun = Run.open(folder).settings()
    if (mine := settings.objective.kind) != (theirs := begun.objective.kind):
        what = f"is not what {folder} was trained with ({mine}, there {theirs})"
        raise UserError("objective.kind", what, "leave objective.kind out, or use init_from")
    return begun


def _at_size(where: str, network: Any, trained: tuple[int, int, int], data: tuple[int, int, int]) -> Any:
    """A network's settings for images of another size: the same levels attend. Raises `UserError` where that fails."""
    if tuple(trained) == tuple(data):
        return network
    if not isinstance(network, UNetSettings) or trained[0] != data[0]:
        check_shapes(f"init_from={where}", trained, data)
    levels = len(network.multipliers)
    if min(data[1:]) < 2 ** (levels - 1):
        what = f"{_by(data)} images are too small for its {levels} levels"
        raise UserError(f"init_from={where}", what, f"set data.size={trained[1]}x{trained[2]}")
    before, after = resolutions(levels, trained), resolutions(levels, data)
    attention = tuple(after[before.index(resolution)] for resolution in network.attention)
    return network.model_copy(update={"attention": attention})


def _trunk(settings: TrainSettings, shape: tuple[int, int, int], earlier: Run) -> TrainSettings:
    """The layers of a U-Net up to one of them, and a head that is new."""
    network = settings.network
    assert isinstance(network, TrunkSettings)
    where = str(settings.resume_from or settings.init_from)
    begun = _begun(settings, earlier)
    if begun is not None and isinstance(begun.network, TrunkSettings):
        source: Any = begun.network.unet, begun.noise
        best = begun.network.layer  # a probe made since changes nothing
    elif settings.init_from is None:
        raise UserError(f"resume_from={where}", "is not the run of a trunk", "init_from starts one from a denoiser")
    else:
        denoiser: Any = source_model(settings.init_from)
        check_shapes(f"init_from={settings.init_from}", denoiser.shape, shape)
        source = denoiser.network.settings, denoiser.family.settings
        best = probed_layer(settings.init_from)
    unet = _taken(network.unet, source[0], OWN_UNET, "network.unet", where)
    given = settings.noise if "noise" in settings.model_fields_set else None
    noise = _taken(given, source[1], OWN_NOISE, "noise", where)
    update = {"unet": unet, "layer": network.layer or best or middle_layer(unet)}
    return settings.model_copy(update={"network": network.model_copy(update=update), "noise": noise})


def probed_layer(source: str) -> str | None:
    """The best layer of a run by its newest probe, None where it has not been probed."""
    probe = newest_probe(source)
    if probe is None or not (probe / "result.json").is_file():
        return None
    return str(json.loads((probe / "result.json").read_text())["results"]["one layer"]["places"][0][0])


def resolutions(levels: int, shape: tuple[int, int, int]) -> list[int]:
    """The shorter side of the maps of each level of a U-Net, as `network.attention` names them."""
    multiple = 2 ** (levels - 1)
    side = -(-min(shape[1:]) // multiple) * multiple
    return [side >> level for level in range(levels)]


def check_shapes(where: str, trained: tuple[int, int, int], data: tuple[int, int, int]) -> None:
    """Raises `UserError` where a model of (C, H, W) images would be given others."""
    if tuple(trained) != tuple(data):
        channels, height, width = trained
        what = f"was trained on {_by(trained)} images, the data has {_by(data)}"
        hints = [f"data.size={height}x{width}"] if trained[1:] != data[1:] else []
        hints += [f"data.channels={channels}"] if channels != data[0] else []
        raise UserError(where, what, f"set {' and '.join(hints)}")


def _by(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def place_of(source: str) -> tuple[str, str]:
    """(run, snapshot or images) of `RUN@SNAPSHOT`; (`source`, "last") without one."""
    run, mark, at = source.rpartition("@")
    return (run, at) if mark and not Path(source).exists() else (source, "last")


def source_model(source: str, settings: TrainSettings | None = None) -> Any:
    """The model to start from; settings: of the run that starts from it whole, None for a trunk of it.

    Raises `UserError` for a model of another kind, one that is not of pixels for a trunk, and one of latents for a run
    of pixels or the other way round.
    """
    where = f"init_from={source}"
    model: Any = load(*place_of(source))
    if isinstance(model, JointClassifier):  # of a run without denoising, which may be trained further with it
        model = model.joint
    if settings is not None and settings.objective.kind in ("supervised", "freematch", "kd"):
        if not isinstance(model, NetworkClassifier):
            raise UserError(where, "is no classifier", "network.kind=trunk makes one of a denoiser")
        return model
    if isinstance(model, Upscaler):
        raise UserError(where, "is a super-resolution model that draws nothing", "give the run of a denoiser")
    if not isinstance(model, Denoiser):
        raise UserError(where, "is a classifier", "give the run of a denoiser")
    network = getattr(model, "network", None)
    pixels = isinstance(model, NetworkDenoiser) and isinstance(model.codec, PixelCodec)
    if settings is not None and isinstance(model, NetworkDenoiser):
        _check_latents(where, pixels, settings)
        pixels = True  # or latents, which are wanted
    if settings is None and not (pixels and isinstance(network, UNet)):
        what = f"is a {type(network or model).__name__}, a trunk is made of a U-Net of pixels"
        raise UserError(where, what, "give the run of one")
    if not pixels or getattr(getattr(network, "settings", None), "kind", None) not in NETWORKS:
        what = f"is a {type(network or model).__name__} that cannot be trained further"
        raise UserError(where, what, "give a U-Net of pixels")
    return model


def _check_latents(where: str, pixels: bool, settings: TrainSettings) -> None:
    """Raises `UserError` where one of two is of pixels and the other of latents; `start` compares autoencoders."""
    if pixels and settings.codec is not None:
        raise UserError(where, "is a model of pixels, this run is one of latents", "leave codec out")
    if not pixels and settings.codec is None:
        raise UserError(where, "is a model of latents, this run is one of pixels", "give its autoencoder: codec=RUN")


def _taken(given: S | None, inherited: S, own: set[str], where: str, source: str) -> S:
    """The inherited settings with those of `own` that were given. Raises `UserError` for others that differ."""
    if given is None:
        return inherited
    kinds = getattr(given, "kind", None), getattr(inherited, "kind", None)
    named = given.model_fields_set - {"kind"} | ({"kind"} if kinds[0] != kinds[1] else set())
    if "kind" not in named:
        update = {name: getattr(given, name) for name in named & own}
        inherited, named = inherited.model_copy(update=update), named - own
    different = [path for path in differences(given, inherited) if path.split(".")[0] in named]
    if different:
        mine, theirs = (_value(flatten(side).get(different[0])) for side in (given, inherited))
        path, what = f"{where}.{different[0]}", f"is not what {source} was trained with ({mine}, there {theirs})"
        hint = f", or say {path}={theirs}" if different[0] == "kind" and named - {"kind"} <= own else ""
        raise UserError(path, what, f"leave {where} to it{hint}")
    return inherited


def _value(value: Any) -> str:
    return "none" if value is None else str(value)
