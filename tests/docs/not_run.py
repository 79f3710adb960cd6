"""Commands in the documentation that cannot run in a test, each with the reason. Patterns of the whole command."""

from __future__ import annotations

import re

NOT_RUN = [
    (r"source \S*activate", "changes the shell that it is typed in"),
    (r"(\S*/)?pip install .*", "installs packages"),
    (r"docker .*", "needs a container engine"),
    (r"kubectl .*", "needs a cluster"),
    (r"nvidia-smi.*", "needs an NVIDIA GPU"),
    (r"git (clone|pull|push) .*", "needs the network"),
    (r"(head|tail|less|ls|cat|jq|base64|mkdir|cp|tar|unzip)( .*)?", "shows, moves or unpacks files"),
    (r"cd \S+", "a person's own folders"),
    (r"twofold demo.*", "takes minutes; the tests of the command line run it at a small size"),
    (r"twofold export .*to=hub .*", "uploads to the hub; the tests of interchange talk to one that is made up"),
    (r"twofold (push|pull) .*", "needs the hub; the tests of interchange talk to one that is made up"),
    (r"(torchrun|twofold) .*dpt-imagenet256-uvit-[lh].*", "needs MSN's published weights and ImageNet"),
    (r"accelerate launch .*", "another launcher, named for what it does wrong"),
    (r"mkdocs serve.*", "runs until it is stopped"),
]


def reason_not_run(text: str) -> str | None:
    """Why a command is not run; None: it is."""
    return next((reason for pattern, reason in NOT_RUN if re.fullmatch(pattern, text)), None)
