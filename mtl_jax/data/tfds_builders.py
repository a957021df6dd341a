"""Everything that touches tensorflow-datasets, imported only when called.

TensorFlow is not needed: sets are read and written as ``array_record`` files.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")
_READ_AT_ONCE = 4096


def find_prepared(data_dir: Path, name: str) -> Path | None:
    """Newest ``data_dir/name/VERSION`` that tensorflow-datasets has prepared."""
    found = (data_dir / name).glob("*/dataset_info.json")
    return max(
        (path.parent for path in found), default=None, key=lambda path: path.name
    )


def read_digits(prepared: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) int32 of a prepared MNIST-like set.

    Raises:
        ValueError: it was prepared in a format that needs TensorFlow to read.
    """
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(prepared))
    found = builder.info.file_format
    if found is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{prepared} was prepared as {found and found.value}, which only "
            "TensorFlow reads; prepare it again with file_format='array_record'"
        )
    columns = _read(builder.as_data_source(split=split), ("image", "label"))
    return columns[0][..., 0], columns[1].astype(np.int32)


def read_multi_mnist(
    cache_dir: Path, data_dir: Path, recipe: dict[str, Any]
) -> tuple[dict[str, list[np.ndarray]], str]:
    """Reads a MultiMNIST set from ``cache_dir``, after preparing it if it is missing.

    The recipe names the prepared folder; the base files do not, so remove the folder
    when they change.

    Args:
        cache_dir: the ``data_dir`` of tensorflow-datasets.
        data_dir: folder with the base sets.
        recipe: the other arguments of :func:`mtl_jax.data.load_multi_mnist`.

    Returns:
        ``{split: [images, labels]}`` and the sentence on the set's source.

    Raises:
        FileNotFoundError: there is no ``data_dir``, or a base set is not in it.
    """
    import tensorflow_datasets as tfds

    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"data_dir {data_dir} does not exist; pass the folder with the base sets"
        )
    builder_class, config_class = multi_mnist_builder()
    builder: Any = builder_class(
        config=config_class(name=_config_name(recipe), recipe=recipe),
        data_dir=cache_dir,
        file_format="array_record",
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=data_dir)
    )
    features, splits = builder.info.features, {}
    for name in SPLITS:
        if name in builder.info.splits:
            rows = builder.as_data_source(split=name)
            splits[name] = _read(rows, ("image", "labels"))
        else:  # a split without examples is not written
            splits[name] = [
                np.zeros((0, *features[key].shape), features[key].np_dtype)
                for key in ("image", "labels")
            ]
    return splits, builder.info.metadata["source"]


@functools.cache
def multi_mnist_builder() -> tuple[type, type]:
    """The builder and its configuration class, ``(MultiMnist, MultiMnistConfig)``.

    Features: ``image`` uint8 (S, S, 1) and ``labels`` int32 (2,). The base sets are
    read from ``manual_dir``.
    """
    import tensorflow_datasets as tfds

    from mtl_jax.data.multi_mnist import load_multi_mnist
    from mtl_jax.data.recipes import OUTPUT_SIZE

    @dataclasses.dataclass(eq=False, kw_only=True)
    class MultiMnistConfig(tfds.core.BuilderConfig):
        recipe: dict[str, Any] = dataclasses.field(default_factory=dict)

    class MultiMnist(tfds.core.GeneratorBasedBuilder):
        """Two base images in one picture, two classification tasks."""

        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = (
            "Put the four IDX files of each base set in manual_dir/NAME."
        )

        def __init__(self, **kwargs):
            self._source_note = tfds.core.MetadataDict()  # before _info() runs
            super().__init__(**kwargs)

        @property
        def _recipe(self):
            config = self.builder_config
            assert isinstance(config, MultiMnistConfig)
            return config.recipe

        def _info(self):
            size = OUTPUT_SIZE[self._recipe["construction"]]
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(
                            shape=(size, size, 1), dtype=np.uint8
                        ),
                        "labels": tfds.features.Tensor(shape=(2,), dtype=np.int32),
                    }
                ),
                metadata=self._source_note,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            folder = str(dl_manager.manual_dir)
            data = load_multi_mnist(data_dir=folder, **self._recipe)
            self._source_note["source"] = data.source
            return {
                name: self._generate_examples(getattr(data, name))
                for name in SPLITS
                if len(getattr(data, name).labels)
            }

        def _generate_examples(self, split):
            for k in range(len(split.labels)):
                yield k, {"image": split.images[k], "labels": split.labels[k]}

    return MultiMnist, MultiMnistConfig


def _config_name(recipe: dict[str, Any]) -> str:
    """Recipe as a folder name: its values, in order, joined by dashes."""
    words = (
        "x".join(map(str, v)) if isinstance(v, tuple) else v for v in recipe.values()
    )
    return "-".join("default" if word is None else str(word) for word in words)


def _read(source: Any, features: tuple[str, ...]) -> list[np.ndarray]:
    """Columns of a tensorflow-datasets data source, read in large blocks."""
    blocks = []
    for start in range(0, len(source), _READ_AT_ONCE):
        stop = min(start + _READ_AT_ONCE, len(source))
        rows = source.__getitems__(list(range(start, stop)))
        blocks.append([np.stack([row[name] for row in rows]) for name in features])
    return [np.concatenate(column) for column in zip(*blocks, strict=True)]
