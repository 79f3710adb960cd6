"""Any image model of `transformers` as a backbone: ResNet, ConvNeXt, Swin, DINOv2, MobileNetV2, ViT, ...

Models that `transformers` has as backbones give their stages; of others the hidden states are read: one map per
resolution, or, of a transformer, tokens in their places. It is imported only where such a student is built.
"""

from __future__ import annotations

import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError, first_line
from ...settings.student import TransformersSettings
from ...taps import Layer
from .found import WHERE, network, options, quiet
from .parts import Backbone, check_size, own_norms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
MOST = 4  # maps that are read, unless settings say which
OWN = ("transformers_version", "architectures", "out_features", "out_indices", "num_channels", "dtype", "model_type")


class Foreign(Backbone):
    """The backbone of these settings; see `Backbone`. settings: complete, without what they were read from.

    Grey images are repeated for a pretrained network of RGB. Where a model would drop pixels at the sides, images are
    extended there by their last ones, so that sides of maps are ceil(side / stride).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: TransformersSettings, shape: tuple[int, int, int]) -> None:
        super().__init__()
        with quiet():
            config = options(settings, shape[0])
            self.model, self.is_backbone = network(settings, config)
        own_norms(self.model)
        self.named = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.channels = int(getattr(config, "num_channels", 3))
        if shape[0] not in (1, self.channels):
            what = f"it reads images of {self.channels} channels, these have {shape[0]}"
            raise UserError(f"{WHERE}={settings.model}", what, f"set data.channels={self.channels}")
        normalize = settings.pretrained if settings.normalize is None else settings.normalize
        mean, std = (MEAN, STD) if normalize else ((0.5,), (0.5,))
        self.register_buffer("mean", 2 * torch.tensor(mean).view(1, -1, 1, 1) - 1, persistent=False)  # of x0
        self.register_buffer("std", 2 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.patch = patch if isinstance(patch := getattr(config, "patch_size", None), int) else 1
        self.unit, self.chosen = 1, settings.stages
        self._measure()
        self._leave_unread()
        check_size(f"transformers ({config.model_type})", shape, max(layer.stride for layer in self.stages))
        own = {name: value for name, value in config.to_diff_dict().items() if name not in OWN}
        if self.channels != shape[0]:
            own["num_channels"] = self.channels
        update = {"model": config.model_type, "config": own, "pretrained": False, "normalize": normalize}
        self.settings = settings.model_copy(update=update)

    def _measure(self) -> None:
        """Fills in the layers, and what sides must be multiples of, by asking the network about two images."""
        side = math.lcm(self.patch, 32)
        found = self._shapes(side)
        self._choose(found)
        assert self.chosen is not None
        kept = [found[i] for i in self.chosen]
        strides = [round(side / h) for _, h in kept]
        after = self._shapes(side + 1)
        if any(after[i][1] != -(-(side + 1) // stride) for i, stride in zip(self.chosen, strides, strict=True)):
            self.unit = math.lcm(*strides)
        self.out = nn.ModuleList(nn.Identity() for _ in kept)  # where the maps are read
        facts = zip(self.out, kept, strides, strict=True)
        self.layers = {f"stage.{i}": Layer(tap, d, stride) for i, (tap, (d, _), stride) in enumerate(facts)}
        self.aliases = {}

    def _shapes(self, side: int) -> list[tuple[int, int]]:
        """(channels, side) of every map for a square image."""
        like, training = next(self.model.parameters()), self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                maps = self._maps(torch.zeros(1, self.channels, side, side, device=like.device, dtype=like.dtype))
            found = [(m.shape[1], m.shape[2]) for m in maps]
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
            what = f"its maps cannot be read ({first_line(error)})"
            raise UserError(f"{WHERE}={self.model.config.model_type}", what, "take another model") from error
        self.model.train(training)
        return found

    def _leave_unread(self) -> None:
        """What none of the maps depends on (mask tokens, blocks behind the last map) is not trained."""
        like, training = next(self.model.parameters()), self.model.training
        self.model.eval()
        with torch.enable_grad():
            maps = self._maps(torch.zeros(1, self.channels, side := math.lcm(self.patch, 32), side).to(like))
            total = torch.stack([maps[i].float().sum() for i in self.chosen or ()]).sum()
            trained = [p for p in self.model.parameters() if p.requires_grad]
            read = torch.autograd.grad(total, trained, allow_unused=True)
        for parameter, gradient in zip(trained, read, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.model.train(training)

    def _choose(self, found: list[tuple[int, int]]) -> None:
        """Which maps are read: the last of each resolution; of one resolution alone, some from all over the depth."""
        if self.chosen is not None:
            if self.chosen[0] < 0 or self.chosen[-1] >= len(found):
                what = f"the model has {len(found)} maps"
                raise UserError(f"network.backbone.stages={list(self.chosen)}", what, f"give 0 .. {len(found) - 1}")
            return
        last = [i for i, (_, h) in enumerate(found) if i + 1 == len(found) or found[i + 1][1] != h]
        if len(last) == 1:
            count = min(MOST, len(found))
            last = [round((k + 1) * len(found) / count) - 1 for k in range(count)]
        self.chosen = tuple(last[-MOST:])

    def _maps(self, x: Tensor) -> list[Tensor]:
        """All maps (B, D, h, w) of images in the model's own range."""
        if self.is_backbone:
            return list(self.model(x).feature_maps)
        extra = {"interpolate_pos_encoding": True} if self.named else {}
        answer = self.model(x, output_hidden_states=True, **extra)
        states, last = list(answer.hidden_states), answer.last_hidden_state
        if last.ndim == 3:  # a transformer: the first state is what comes into its first block
            return [self._in_places(tokens, x) for tokens in [*states[1:-1], last]]
        return [*(states[:-1] if states[-1].shape == last.shape else states), last]

    def _in_places(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Tokens (B, N, D) as a map (B, D, h, w), without those that are no patches, which come first."""
        height, width = (side // self.patch for side in x.shape[2:])
        tokens = tokens[:, tokens.shape[1] - height * width :]
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = (x.expand(-1, self.channels, -1, -1) - self.mean) / self.std
        after = [-(-side // self.unit) * self.unit - side for side in size]
        if any(after):
            x = F.pad(x, (0, after[1], 0, after[0]), mode="replicate")
        maps = self._maps(x)
        found = []
        for tap, layer, i in zip(self.out, self.stages, self.chosen or (), strict=True):
            height, width = (-(-side // layer.stride) for side in size)
            found.append(tap(maps[i][:, :, :height, :width]))
        return found
