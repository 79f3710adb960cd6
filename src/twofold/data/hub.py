"""Data sets of the Hugging Face hub, through the `datasets` library: org/name, org/name:config, org/name@revision.

What is packed stays packed: the same name opens the same store again, without a network, until its folder in the
cache is deleted or another revision is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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

    def batches(
        self, columns: list[str], start: int = 0, stop: int | None = None, at_once: int = ROWS_AT_ONCE
    ) -> Iterator[Any]:
        kept = self._dataset.select_columns(columns).select(range(self.rows)[start:stop])
        for table in kept.with_format("arrow").iter(at_once):
            yield from table.combine_chunks().to_batches()


class StreamedShard:
    """The same for a split that is read while it arrives; `rows` counts them by a pass of its own if nothing says."""

    folder: Path | None = None

    def __init__(self, dataset: Any, name: str, split: str | None, most: int | None, source: str) -> None:
        if dataset.features is None:  # the kind of every column is known after the first rows
            dataset = dataset._resolve_features()
        self._dataset, self.name, self.split, self._most, self._source = dataset, name, split, most, source
        self.schema = dataset.features.arrow_schema

    @cached_property
    def rows(self) -> int:
        """At least `most` of them, if there are: no row beyond that is asked for."""
        told = (self._dataset.info.splits or {}).get(self.name)
        if told is not None and told.num_examples:
            return int(told.num_examples)
        return sum(len(batch) for batch in self.batches(self._lightest(), 0, self._most))

    def batches(
        self, columns: list[str], start: int = 0, stop: int | None = None, at_once: int = ROWS_AT_ONCE
    ) -> Iterator[Any]:
        kept = self._dataset.select_columns(columns).with_format("arrow").skip(start)
        kept = kept if stop is None else kept.take(max(0, stop - start))
        try:
            for table in kept.iter(at_once):
                yield from self._embedded(table.select(columns)).combine_chunks().to_batches()
        except Exception as error:  # of the network, of the hub, of one of many readers: all about this split
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self._source}: {self.name}",
                f"streaming stopped ({type(error).__name__}: {text})",
                "run the command again",
            ) from error

    def _embedded(self, table: Any) -> Any:
        """The same rows with the bytes of images that are only named in them, which may be anywhere on the hub."""
        import pyarrow.compute as pc
        from datasets import Features
        from datasets.table import embed_table_storage

        images = [column for column in table.columns if set(_children(column.type)) == {"bytes", "path"}]
        if all(pc.struct_field(column, "bytes").null_count == 0 for column in images):
            return table
        features = Features({name: self._dataset.features[name] for name in table.column_names})
        return embed_table_storage(table.cast(features.arrow_schema))

    def _lightest(self) -> list[str]:
        """A column that is no image, so that counting rows reads little; the first one if all are."""
        import pyarrow.types as types

        names = [f.name for f in self.schema if not types.is_struct(f.type) and not types.is_binary(f.type)]
        return [*names, *self.schema.names][:1]


def _children(type: Any) -> list[str]:
    import pyarrow.types as types

    return [child.name for child in type] if types.is_struct(type) else []


class Hub(Tables):
    """A hub data set as a source; downloads when it is packed, not before.

    hint: what the user may have meant if this was to be a path. unwanted: splits that are left out.
    """

    def __init__(self, settings: DataSettings, hint: str = "", unwanted: Sequence[str] = ()) -> None:
        super().__init__(settings)
        self._hint, self._unwanted = hint, unwanted
        match = NAME.fullmatch(settings.source)
        if match is None:
            raise ValueError(f"{settings.source!r} is no hub name")
        self._id, self._config, self._revision = match["name"], match["config"], match["revision"]
        self.name = self._id.replace("/", "--") + (f"-{self._config}" if self._config else "")

    def identity(self) -> str:
        return f"hub\0{self._id}\0{self._config}\0{self._revision}"

    def left_out(self) -> list[str]:
        splits = list(self._splits)
        unknown = [name for name in splits if name.lower() not in FILE_SPLITS or name in self._unwanted]
        return unknown if len(splits) > 1 else []

    @cached_property
    def shards(self) -> list[HubShard] | list[StreamedShard]:
        kept = [name for name in self._splits if name not in self.left_out()]
        if not kept:
            raise UserError(
                self.where,
                f"none of its splits ({', '.join(self._splits)}) is called train, validation or test",
                "save the one you want as Parquet and give that file",
            )
        named = [(self._splits[name], name, FILE_SPLITS.get(name.lower())) for name in kept]
        if self.settings.streaming:
            return [StreamedShard(*split, self.settings.most, self.where) for split in named]
        return [HubShard(*split) for split in named]

    @cached_property
    def _splits(self) -> Any:
        """{split name: datasets.Dataset}, or IterableDataset where it is streamed."""
        self._check_reachable()
        import datasets

        try:
            return datasets.load_dataset(
                self._id, self._config, revision=self._revision, streaming=self.settings.streaming
            )
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
