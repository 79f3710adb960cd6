"""What Prometheus may ask: how much was asked for, how long it took, how full the queue is."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One server's numbers. engine: asked what it does now, when they are read."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry}
        self.requests = Counter(
            "twofold_requests", "Requests that were answered", ["ability", "model", "status"], **own
        )
        self.seconds = Histogram(
            "twofold_request_seconds", "From a request's arrival to its answer", ["ability"], buckets=SECONDS, **own
        )
        self.images = Counter("twofold_images", "Images made or looked at", ["ability", "model"], **own)
        self.batches = Histogram("twofold_batch_images", "Images that were computed together", buckets=SIZES, **own)
        self.left = Counter("twofold_left", "Callers that went before their answer", ["ability"], **own)
        self.errors = Counter("twofold_errors", "Mistakes of the server's own", **own)
        Gauge("twofold_queue_waiting", "Requests that wait for their turn", **own).set_function(lambda: engine.waiting)
        Gauge("twofold_groups_working", "Batches in progress", **own).set_function(lambda: engine.working)
        Gauge("twofold_devices_dead", "Devices that compute no more", **own).set_function(lambda: len(engine.dead))

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)
