"""Class tokens of frozen vision transformers: MSN, DINO, DINOv2, DINOv3, ViT, ...

What DPT's classifier reads is the class token after the last block, before the final norm (`cls:SRC`), or those of the
last N blocks side by side (`cls4:SRC`). The norm would divide each image's vector by its own length and weigh its
features as pre-training wanted them.

SRC is what `transformers:SRC` takes, or a file of github.com/facebookresearch/msn. Where nothing says how images are
prepared they are as in DPT and MSN: shorter side 256 (bilinear), centre 224 x 224, ImageNet's mean and deviation.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, first_line
from .inception import exact
from .msn_weights import FILES, msn_model
from .pretrained import TransformersEncoder, image_model, is_here, processor_facts

PUBLISHED = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 2,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


class ClassTokenEncoder(TransformersEncoder):
    """The class tokens after the last `blocks` blocks, earlier ones first: float32 (B, blocks * D).

    name: `cls:msn-base` or `cls4:...`. Raises `UserError` where there is no such model, it has no class token or fewer
    blocks, or it does not take images of the size they are given to it in.
    """

    batch = 16

    def __init__(self, source: str, blocks: int = 1, device: torch.device | str = "cpu") -> None:
        self.count = blocks
        super().__init__(source, device)
        where = f"encoder={cls_name(source, blocks)}"
        self.name = cls_name(self.name, blocks)
        self.version = f"{self.version}, class tokens of {blocks} blocks before the norm"
        self.blocks = _blocks(self.model, where)
        if not 1 <= blocks <= len(self.blocks):
            raise UserError(where, f"the model has {len(self.blocks)} blocks", f"cls1 to cls{len(self.blocks)}")
        self._check_size(where)

    def _load(self, source: str) -> tuple[dict[str, Any], Any]:
        path = Path(source).expanduser()
        if path.suffix in FILES and path.is_file():
            return dict(PUBLISHED), msn_model(path, 224)
        here = is_here(source)
        return processor_facts(source, here) or dict(PUBLISHED), image_model(source, here)

    def _check_size(self, where: str) -> None:
        """One grey image, before all others are read."""
        side = self.crop or (self.size if isinstance(self.size, tuple) else (self.size, self.size))
        config = self.model.config
        native = getattr(config, "image_size", None)
        native = (native, native) if isinstance(native, int) else native
        takes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if takes and native and tuple(native) != tuple(side) else {}
        if getattr(config, "mask_ratio", 0):  # MAE would hide most of the image, at random
            config.mask_ratio = 0.0
        try:
            self.embed(torch.full((1, 3, *side), 128, dtype=torch.uint8))
        except (ValueError, RuntimeError) as error:
            what = f"does not take images of {side[0]} x {side[1]} ({first_line(error)})"
            raise UserError(where, what, "correct size or crop_size in its preprocessor_config.json") from error

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> float32 (B, blocks * D). Raises `UserError` for another number of channels."""
        found: list[Tensor] = []

        def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
            tokens = output if isinstance(output, Tensor) else output[0]
            found.append(tokens[:, 0].float())

        hooks = [block.register_forward_hook(keep) for block in self.blocks[-self.count :]]
        try:
            with exact():
                self.model(pixel_values=self.prepare(images).to(self.device), **self.options)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found, 1)


def cls_name(source: str, blocks: int) -> str:
    """`cls:SRC`, or `cls4:SRC` for four blocks."""
    return f"cls{blocks if blocks > 1 else ''}:{source}"


def _blocks(model: nn.Module, where: str) -> nn.ModuleList:
    """The transformer blocks. Raises `UserError` for a model without blocks or without a class token."""
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    token = any(re.search(r"(cls_token|class_embedding)$", name) for name, _ in model.named_parameters())
    if not lists or not token:
        what = f"{type(model).__name__} has no class token"
        raise UserError(where, what, "use transformers:SRC, which reads what the model pools")
    return lists[0]
