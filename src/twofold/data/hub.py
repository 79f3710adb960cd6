"""Data sets of the Hugging Face hub, through the `datasets` library: org/name, org/name:config, org/name@revision.

What is packed stays packed: the same name opens the same store again, without a network, until its folder in the
cache is deleted or another revision is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings.data import DataSettings
from .items import FILE_SPLITS
from .tables import ROWS_AT_ONCE, Tables

NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*?)(:(?P<config>[\w.+-]+))?(@(?P<revision>[\w./-]+))?")
SECONDS = 10  # to wait for the hub before saying that it cannot be reached


class HubShard:
    """One split of a hub data set, with the face of `tables.Shard`."""

    folder: Path | None = None

    def __init__(self, dataset: Any, name: str, split: str | None) -> None:
        self._dataset, self.name, self.split = dataset, name, split
        self.schema = dataset.features.arrow_schema
        self.rows = len(dataset)

    def batches(self, columns: list[str], rows: int = ROWS_AT_ONCE) -> Iterator[Any]:
        for table in self._dataset.select_columns(columns).with_format("arrow").iter(rows):
            yield from table.combine_chunks().to_batches()


class Hub(Tables):
    """A hub data set as a source; downloads when it is packed, not before.

    hint: what the user may have meant if this was to be a path.
    """

    def __init__(self, settings: DataSettings, hint: str = "") -> None:
        super().__init__(settings)
        self._hint = hint
        match = NAME.fullmatch(settings.source)
        if match is None:
            raise ValueError(f"{settings.source!r} is no hub name")
        self._id, self._config, self._revision = match["name"], match["config"], match["revision"]
        self.name = self._id.replace("/", "--") + (f"-{self._config}" if self._config else "")

    def identity(self) -> str:
        return f"hub\0{self._id}\0{self._config}\0{self._revision}"

    def left_out(self) -> list[str]:
        splits = list(self._splits)
        return [name for name in splits if name.lower() not in FILE_SPLITS] if len(splits) > 1 else []

    @cached_property
    def shards(self) -> list[HubShard]:
        kept = [name for name in self._splits if name not in self.left_out()]
        if not kept:
            raise UserError(
                self.where,
                f"none of its splits ({', '.join(self._splits)}) is called train, validation or test",
                "save the one you want as Parquet and give that file",
            )
        return [HubShard(self._splits[name], name, FILE_SPLITS.get(name.lower())) for name in kept]

    @cached_property
    def _splits(self) -> Any:
        """{split name: datasets.Dataset}."""
        self._check_reachable()
        import datasets

        try:
            return datasets.load_dataset(self._id, self._config, revision=self._revision)
        except Exception as error:  # builders raise nearly anything; all of it is about this name
            raise self._failed(error) from error

    def _check_reachable(self) -> None:
        """One quick question to the hub: `datasets` itself would retry for half a minute before it gives up."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            huggingface_hub.HfApi().dataset_info(self._id, revision=self._revision, timeout=SECONDS)
        except errors.GatedRepoError as error:
            raise UserError(
                self.where,
                "this hub data set asks for your consent",
                "accept its terms on the hub, then run: hf auth login",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(self.where, f"the hub data set has no revision {self._revision!r}") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise UserError(
                self.where,
                "there is no such folder here and no such data set on the hub (or it is private)",
                self._hint or "check the name; for a private one run: hf auth login",
            ) from error
        except Exception as error:  # no network, name resolution, proxy, offline mode, a hub that is down
            if not self._downloaded():
                raise self._unreachable(error) from error

    def _downloaded(self) -> bool:
        """Whether `datasets` has some of it on this machine and can do without the hub."""
        import datasets
        from huggingface_hub import constants

        prepared = Path(datasets.config.HF_DATASETS_CACHE) / self._id.replace("/", "___")
        fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{self._id.replace('/', '--')}"
        return prepared.is_dir() or fetched.is_dir()

    def _unreachable(self, error: Exception) -> UserError:
        return UserError(
            self.where,
            "there is no such folder here, and the hub, where it may be a data set, cannot be reached "
            f"({type(error).__name__})",
            self._hint or "for hub data without internet, download its Parquet files elsewhere and give their folder",
        )

    def _failed(self, error: Exception) -> UserError:
        text = " ".join(str(error).split())
        if isinstance(error, ConnectionError):
            return self._unreachable(error)
        if "onfig name" in text or "BuilderConfig" in text:
            return UserError(self.where, text[:300], f"name one: data={self._id}:CONFIG")
        return UserError(self.where, f"the datasets library cannot load it ({type(error).__name__}: {text[:300]})")
