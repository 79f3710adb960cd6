"""`twofold serve RUN [RUN ...]`: a REST API and a web page over trained models."""

from __future__ import annotations

import argparse
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.resolve import parse_assignments, resolve
from ..settings.serve import ServeSettings
from .show import say

OPTIONS = ("--device", "--quiet")
PORT = 8765
NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client")


def settings_model() -> type[ServeSettings]:
    return ServeSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", metavar="RUN", nargs="+", help="runs, probes, .safetensors files, or folders of runs"
    )
    parser.add_argument(
        "--host", metavar="NAME", default="127.0.0.1", help="where to listen; default: this machine only"
    )
    parser.add_argument("--port", metavar="N", type=int, default=PORT, help=f"default: {PORT}; 0 = any free one")


def run(args: argparse.Namespace) -> int:
    settings, _ = resolve(ServeSettings, [("command line", parse_assignments(args.assignments))])
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError("twofold serve", f"{missing[0]} is not installed", "pip install 'twofold[serve]'")
    say("loading torch ...", args.quiet)
    from ..learn.training import make_accelerator
    from ..serve.app import create_app
    from ..serve.keys import Keys
    from ..serve.limits import LOOPBACK
    from ..serve.models import find, load_all
    from ..serve.server import address, listen, run

    keys, sources = Keys.read(settings.keys), find(args.sources)
    sock = listen(args.host, args.port)  # before minutes of loading; callers wait in its backlog
    local = args.host in LOOPBACK
    if not local and not keys.digests:
        say(f"everybody who reaches {args.host} may ask; keys=FILE names who", args.quiet)
    devices: list[Any] = list(settings.devices or ()) or [make_accelerator(args.device).device]
    say(f"loading {', '.join(sources)} ...", args.quiet)
    asked = [str(Path(source)) for source in args.sources]
    tell = lambda line: say(line, args.quiet)  # noqa: E731
    places = [load_all(sources, settings, _device(name), asked, tell) for name in devices]
    hosts = settings.hosts or (LOOPBACK if local else None)
    app = create_app(places, settings, keys, hosts)
    app.state.service.on_error = lambda error: traceback.print_exception(error, file=sys.stderr)
    code = run(
        app, sock, settings.drain, lambda: print(f"serving {', '.join(places[0])} at {address(sock)}", flush=True)
    )
    if code == 0:
        say("stopped; whatever was accepted has been answered", args.quiet)
    return code


def _device(name: Any) -> Any:
    """Raises `UserError` for one that is not there."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"devices={name}", str(error).splitlines()[0], "see `twofold doctor`") from None
    return device
