"""How much memory attention at full resolution takes in IDDM's U-Net, beside torch's module that returns its weights.

    python benchmarks/iddm_attention.py --sizes 64 128

Each measurement is a process of its own: one image, forward and backward through the layer at full resolution (64
channels, 4 heads, N = size^2 pixels), peak resident memory above what the process had before it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from typing import Any

HOW = ("ours", "weights")


def measure(size: int, how: str) -> dict[str, Any]:
    import torch
    from torch import nn

    from twofold.networks.iddm import Attending

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer: Any = Attending(64, 4, "gelu")
    if how == "weights":
        layer.attention = with_weights(nn.MultiheadAttention(64, 4, batch_first=True))
    layer(torch.randn(1, 64, 8, 8)).sum().backward()  # what is loaded at the first call is not counted
    x = torch.randn(1, 64, size, size, requires_grad=True)
    before, start = peak(), time.perf_counter()
    layer(x).sum().backward()
    return {"size": size, "how": how, "MiB": round(peak() - before), "seconds": round(time.perf_counter() - start, 2)}


def with_weights(attention: Any) -> Any:
    """torch's module called as IDDM calls it; made here because torch is imported late."""
    from torch import nn

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, tokens: Any) -> Any:
            return self.attention(tokens, tokens, tokens, need_weights=True)[0]

    return Module()


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.one[0]), args.one[1])))
        return
    rows = []
    for size in args.sizes:
        for how in HOW:
            done = subprocess.run([sys.executable, __file__, "--one", str(size), how], capture_output=True, text=True)
            failed = {"size": size, "how": how, "failed": done.returncode}  # killed for its memory
            rows.append(json.loads(done.stdout) if done.returncode == 0 else failed)
            print(rows[-1], file=sys.stderr, flush=True)
    print(json.dumps({"command": " ".join(sys.argv), "machine": platform.processor(), "rows": rows}))


if __name__ == "__main__":
    main()
