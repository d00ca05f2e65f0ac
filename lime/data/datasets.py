"""The data set that a configuration names, opened."""

from __future__ import annotations

from lime.data.config import OWN, DataConfig
from lime.data.own.dataset import OwnDataset
from lime.data.rows import DataError, MMTDataset


def open_dataset(data: DataConfig) -> MMTDataset:
    """The rows of `data.root` and their tasks. DataError, ValueError or FileNotFoundError where they cannot be used."""
    if data.root is None:
        raise DataError("data.root: expected the folder that holds the data set, got nothing")
    return OwnDataset(data.root, data.test_fraction) if data.name == OWN else MMTDataset(data.root)
