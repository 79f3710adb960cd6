"""A run to and from a hub of models (huggingface.co, or what HF_ENDPOINT names): one commit there, a snapshot back.

Coming back, only settings, JSON and safetensors are asked for: nothing that is downloaded is ever unpickled.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import UserError, first_line
from ..recognize.encoded import FILE as ENCODED

NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")
# first what twofold writes; then, for a repository without it, what diffusers writes
OURS = ["settings.yaml", "model.safetensors", "result.json", "codec/*.json", "codec/*.safetensors"]
OURS += ["probe.safetensors", ENCODED, "README.md"]
ANY = ["*.json", "*.yaml", "*.safetensors", "README.md"]
NEVER = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack"]
# what an upload may have written: of an earlier one nothing stays that the new one has not
WRITTEN = ["settings.yaml", "model.safetensors", "result.json", "codec/*", "model_index.json"]
WRITTEN += [f"{part}/*" for part in ("unet", "transformer", "scheduler", "vae", "vqvae")]
LOGIN = "log in (hf auth login) or set HF_TOKEN to a token that may write"


def is_name(text: str) -> bool:
    """Whether this may be the name of a repository, org/name or org/name@revision."""
    return NAME.fullmatch(text) is not None and not text.startswith("runs/")


def download(name: str) -> Path:
    """The folder of a repository's files that are needed to load it. Raises `UserError` saying why there are none."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        more: dict[str, Any] = {"revision": revision} if revision else {}
        folder = Path(snapshot_download(repository, allow_patterns=OURS, **more))
        if (folder / "settings.yaml").is_file():
            if (folder / "model.safetensors").is_file():
                return folder
            raise UserError(
                name, "its settings.yaml is here, its model.safetensors is not", "is it a run's repository?"
            )
        if _is_ours(folder / "model.safetensors") or any((folder / file).is_file() for file in OURS[5:7]):
            return folder
        return Path(snapshot_download(repository, allow_patterns=ANY, ignore_patterns=NEVER, **more))
    except UserError:
        raise
    except Exception as error:  # the hub raises many kinds for no network, no repository, no permission
        raise _unreachable(name, error) from None


def _is_ours(file: Path) -> bool:
    """Whether twofold wrote the file."""
    with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as opened:
        return "twofold" in (opened.metadata() or {})
    return False


def _unreachable(name: str, error: Exception) -> UserError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        what = "no such folder here, and the hub did not give it (HF_HUB_OFFLINE is set, and it is not in the cache)"
        return UserError(name, what, "load it once while online, or give a local folder")
    what = f"no such folder here, and the hub did not give it ({first_line(error)[:200]})"
    return UserError(name, what, "check the name and the connection, or give a local folder")


def check_name(repo: str) -> str:
    """The name itself. Raises `UserError` for what cannot be one of a repository."""
    if not is_name(repo) or "@" in repo:
        raise UserError(f"repo={repo}", "not the name of a repository", "write repo=org/name")
    return repo


def check_push() -> str:
    """The account that would write. Raises `UserError` where nobody is logged in."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        hint = "unset it to upload; --dry-run shows what would go"
        raise UserError("to=hub", "HF_HUB_OFFLINE is set; nothing was uploaded", hint)
    if get_token() is None:
        raise UserError("to=hub", "no token for the hub; nothing was uploaded", LOGIN)
    try:
        return str(HfApi().whoami()["name"])
    except Exception as error:
        raise UserError("to=hub", f"the hub does not know this token ({first_line(error)[:150]})", LOGIN) from None


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads the folder in one commit, to a new repository or as the next version of one; returns its address.

    Of an earlier upload's files those that are not in the folder are deleted in the same commit: they hold another
    model. Raises `UserError` where the hub refuses, and where a repository that everybody can see would get what is
    private.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api: Any = HfApi()
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    operations: list[Any] = [CommitOperationAdd(name, file) for name, file in files.items()]
    try:
        if api.repo_exists(repo):
            if private and not api.model_info(repo).private:
                what = "is there and everybody can see it"
                raise UserError(f"repo={repo}", what, "say private=false to publish there, or give another name")
            operations += [CommitOperationDelete(name) for name in outdated(api.list_repo_files(repo), files)]
        else:
            api.create_repo(repo, private=private)
        done = api.create_commit(repo_id=repo, operations=operations, commit_message="A model from twofold")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"repo={repo}", f"the hub refused ({first_line(error)[:200]})", LOGIN) from None
    return str(getattr(done, "repo_url", None) or done.commit_url)


def outdated(there: Iterable[str], files: Container[str]) -> list[str]:
    """Of the files there those that an earlier upload wrote and this one does not replace."""
    known = list(there)
    if "settings.yaml" not in known:  # somebody else's
        return []
    return [name for name in known if name not in files and any(fnmatch(name, pattern) for pattern in WRITTEN)]
