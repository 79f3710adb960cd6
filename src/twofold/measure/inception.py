"""The encoder of FID: the 2015 Inception network with its published weights, which are found, checked and named here.

Only with the published weights is a distance called FID. They come in two files, told by their hashes: the state dict
`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid (resizes with aligned pixel centres), and the TorchScript file
`inception-2015-12-05.pt` of StyleGAN2-ADA (resizes as TensorFlow 1 did). Their values differ, so a result says which
was used; any other weights make the encoder `inception-<8 digits of their hash>`.
Neither file is unpickled: a state dict is read as tensors only, a script is a program of tensors.
"""

from __future__ import annotations

import http.client
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data import cache_root
from ..errors import UserError, first_line, some
from ..files import atomic_file, sha256
from ..networks.inception import Inception, prepare
from ..networks.inception_fast import FastInception
from ..weightsfile import read_tensors

STATE_DICT = "pt_inception-2015-12-05-6726825d.pth"
SCRIPT = "inception-2015-12-05.pt"
PUBLISHED = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": STATE_DICT,
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": SCRIPT,
}
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{STATE_DICT}"
PATIENCE = 10  # seconds that the address may stay silent
RESIZED = "bilinear to 299 x 299 without antialiasing, 2 x / 255 - 1"
NAME = "inception"


class InceptionEncoder:
    """pool_3 of Inception, in full float32. Grey images are read as three equal channels.

    weights: a state dict (.pth, .safetensors) or a TorchScript file; default: where they usually lie (`find`).
    name: "inception" with the published weights. version: hash of the file and the form it is computed in.
    batch: images a pass. published: whether the weights are the published ones. transform: what happens to an image.
    Raises `UserError` where there is no such file, it cannot be read, or its weights do not fit.
    """

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = find(weights)
        digest = sha256(path)
        self.published = digest in PUBLISHED
        self.name = NAME if self.published else f"{NAME}-{digest[:8]}"
        self.file, self.device = path.name, torch.device(device)
        # images a pass, the same however many processes share the work; on a CPU so few that maps stay in its cache
        self.batch = 8 if self.device.type == "cpu" else 64
        self.script = is_script(path)
        self.version = f"{digest[:16]}-1"
        self.transform = "the script's own (bilinear to 299 x 299 as in TensorFlow 1)" if self.script else RESIZED
        self.network: Any = read_script(path, self.device) if self.script else FastInception(read_network(path))
        self.network.to(self.device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> float32 (B, 2048). Raises `UserError` for another number of channels."""
        check_channels(images)
        with exact():
            images = images.to(self.device)
            if self.script:
                rgb = images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
                return self.network(rgb, return_features=True).float().flatten(1)
            return self.network(prepare(images)).pool

    @torch.no_grad()
    def probabilities(self, pool: Tensor) -> Tensor:
        """What the 1,008 outputs say, without their bias as published: pool (N, 2048) -> (N, 1008) float64."""
        layer = self.network.output if self.script else self.network.fc
        return functional.linear(pool.double(), layer.weight.cpu().double()).softmax(1)

    def spatial(self) -> SpatialEncoder:
        """The encoder of sFID. Raises `UserError` for a script, whose inner layers have no agreed names."""
        if self.script:
            raise UserError("metrics: sfid", f"{self.file} is a script", f"give weights={STATE_DICT}")
        return SpatialEncoder(self)


class SpatialEncoder:
    """What sFID reads of an `InceptionEncoder`: 7 channels at 17 x 17 places, channels last; stops after them."""

    def __init__(self, whole: InceptionEncoder) -> None:
        self.whole, self.batch, self.transform = whole, whole.batch, whole.transform
        self.name, self.version, self.published = f"{whole.name}-spatial", whole.version, whole.published

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> float32 (B, 2023). Raises `UserError` for another number of channels."""
        check_channels(images)
        with exact():
            return self.whole.network.spatial(prepare(images.to(self.whole.device)))


@contextmanager
def exact() -> Iterator[None]:
    """Full float32 products on a GPU too, whose convolutions are rounded to TF32 by default, and the same each time."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def check_channels(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images are uint8, these are {images.dtype}")
    if images.shape[1] not in (1, 3):
        raise UserError("encoder=inception", f"images of {images.shape[1]} channels", "it reads grey and RGB ones")


def find(weights: str | Path | None = None) -> Path:
    """The file of the weights: the one named, or a published one in the cache, in torch's, or from its address.

    Raises `UserError` saying which file is missing, where it comes from and where to put it.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise UserError(f"weights={weights}", "no such file", f"{STATE_DICT} comes from {ADDRESS}")
        return Path(weights)
    home = cache_root() / "weights"
    for folder in (home, Path(torch.hub.get_dir()) / "checkpoints"):
        for name in (STATE_DICT, SCRIPT):
            if (folder / name).is_file():
                return folder / name
    return download(home / STATE_DICT)


def download(path: Path) -> Path:
    """The published state dict from its address, checked against its hash before it is put at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hint = f"download {ADDRESS} elsewhere and put it at {path}, or give weights=FILE"
    try:
        with urllib.request.urlopen(ADDRESS, timeout=PATIENCE) as answer:
            data = answer.read()
    except (OSError, http.client.HTTPException, ValueError) as error:  # cut short, for one
        reason = " ".join(str(error).split())
        what = f"the Inception weights {STATE_DICT} are not here, and could not be downloaded ({reason})"
        raise UserError("encoder=inception", what, hint) from None

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)
        if PUBLISHED.get(sha256(temporary)) != STATE_DICT:
            raise UserError(ADDRESS, "sent another file than the published one (its hash differs)", hint)

    atomic_file(path, write)
    return path


def is_script(path: Path) -> bool:
    """Whether a file is TorchScript: a zip archive with code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):  # another kind of file, or a damaged one: reading it will say
        return False


def read_script(path: Path, device: torch.device) -> Any:
    """A TorchScript network. Raises `UserError` for one that is none, or has no `output` layer."""
    try:
        script = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(str(path), f"cannot be read as TorchScript ({first_line(error)})", f"get {SCRIPT}") from None
    if not hasattr(script, "output") or "return_features" not in str(script.forward.schema):
        raise UserError(str(path), "is a script of another network", f"get {SCRIPT}, or {STATE_DICT} from {ADDRESS}")
    return script


def read_network(path: Path) -> Inception:
    """The network with the weights of a state dict. Raises `UserError` naming missing, surplus and misshapen ones.

    Weights of an auxiliary classifier, which the release trained with, and counters of batches are passed over.
    """
    network = Inception()
    given = read_tensors(path, f"{STATE_DICT} comes from {ADDRESS}")
    ignored = [name for name in given if name.startswith("AuxLogits.") or name.endswith(".num_batches_tracked")]
    given = {name: value for name, value in given.items() if name not in ignored}
    known = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = {
        "missing": [name for name in known if name not in given],
        "surplus": [name for name in given if name not in known],
        "of another shape": [n for n in given if n in known and given[n].shape != known[n].shape],
    }
    if any(wrong.values()):
        what = "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in wrong.items() if names)
        raise UserError(str(path), f"not the weights of this network ({what})", f"{STATE_DICT} comes from {ADDRESS}")
    network.load_state_dict(given, strict=False)  # all but the counters, as was checked
    if not all(bool(torch.isfinite(value).all()) for value in given.values()):
        raise UserError(str(path), "its weights hold NaN or infinity", f"{STATE_DICT} comes from {ADDRESS}")
    return network.eval().requires_grad_(False)
