"""The examples of deploy/ can be read, and say what the server does: its settings, its port, its times."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from twofold.cli.serve import PORT
from twofold.settings.resolve import parse_assignments, resolve
from twofold.settings.serve import ServeSettings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not in this distribution")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def settings_of(words: list[str]) -> ServeSettings:
    """Of a command; raises for what the server would not take."""
    return resolve(ServeSettings, [("example", parse_assignments([word for word in words if "=" in word]))])[0]


def test_the_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert text.count("FROM ") == 2 and "USER 10001" in text  # what builds it stays behind, and nobody is root
    assert f'"--port", "{PORT}"' in text and f"EXPOSE {PORT}" in text and f"127.0.0.1:{PORT}/health" in text
    root = DEPLOY.parent
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied and all((root / name).exists() for name in copied)


def test_compose() -> None:
    (found,) = documents("docker-compose.yml")
    for service in found["services"].values():
        limits = settings_of(service["command"])
        assert limits.keys == "/run/secrets/keys" and service["secrets"] == ["keys"]
        assert float(service["stop_grace_period"].rstrip("s")) > limits.deadline + limits.upload
        assert service["volumes"] == ["./models:/models:ro"] and service["read_only"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_kubernetes() -> None:
    found = {
        one["kind"]: one for name in ("deployment", "service", "autoscaling") for one in documents(f"k8s/{name}.yaml")
    }
    spec = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    limits = settings_of(container["args"])
    assert spec["terminationGracePeriodSeconds"] > limits.drain + limits.upload + limits.deadline
    probe = container["readinessProbe"]
    assert limits.drain > probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert {container[kind]["httpGet"]["path"] for kind in ("readinessProbe", "startupProbe")} == {"/ready"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels == found["Deployment"]["spec"]["selector"]["matchLabels"]
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    metric = found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    from twofold.serve.engine import Engine
    from twofold.serve.metrics import Metrics

    assert metric in Metrics(Engine([])).text().decode()
