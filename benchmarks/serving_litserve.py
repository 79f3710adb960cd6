"""The peer of `serving.py`: the same model behind LitServe, which batches. Not run by itself.

PYTHON benchmarks/serving_litserve.py RUN BATCH
"""

from __future__ import annotations

import base64
import io
import socket
import sys
from typing import Any

import litserve
import numpy as np
from PIL import Image

import twofold


class Images(litserve.LitAPI):
    """Requests {"seed", "label"} -> {"images": [{"png"}]}."""

    def setup(self, device: str) -> None:
        self.model: Any = twofold.load(sys.argv[1])
        self.predict([{"seed": 0, "label": 0 if self.model.classes else None}])

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # annotations are looked up by FastAPI
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        return list(inputs)

    def predict(self, asked: Any) -> Any:
        asked = asked if isinstance(asked, list) else [asked]
        labels = [one["label"] for one in asked] if self.model.classes else None
        images = twofold.sample(self.model, [one["seed"] for one in asked], labels, micro_batch=len(asked))
        return list(images.numpy())

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        image = output[0] if isinstance(output, list) else output
        buffer = io.BytesIO()
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(buffer, "PNG", compress_level=1)
        return {"images": [{"png": base64.b64encode(buffer.getvalue()).decode()}]}


if __name__ == "__main__":
    batch = int(sys.argv[2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = Images(max_batch_size=batch, batch_timeout=0.005) if batch > 1 else Images()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    print(f"http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
