"""Where configurations are composed from, and Hydra opened there, so that what is checked is what Hydra would run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lime.config.check import ConfigError

COMPOSE_ERRORS = (
    HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError,
    RecursionError, OSError,
)  # fmt: skip
"""What Hydra and OmegaConf raise on odd overrides; not all of it is meant for people."""


@dataclass(frozen=True)
class Source:
    """A folder of configurations, the name of the primary one, and a folder that --config-dir adds."""

    folder: str
    name: str
    extra: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Hydra at this place; what was open before is open again afterwards.

        Raises:
            ConfigError: --config-dir names no folder.
        """
        if self.extra is not None and not Path(self.extra).is_dir():
            raise ConfigError([f"--config-dir: {self.extra}: no such folder"])
        hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        version.setbase("1.3")
        path = create_config_search_path(self.folder)
        if self.extra is not None:
            path.prepend("command-line", f"file://{self.extra}", anchor=SearchPathQuery(provider="schema"))
        GlobalHydra.instance().clear()
        try:
            yield Opened(self.name, Hydra.create_main_hydra2(task_name=self.name, config_search_path=path))
        finally:
            GlobalHydra.instance().hydra = hydra
            HydraConfig.instance().cfg = config


@dataclass
class Opened:
    """Hydra at a :class:`Source`."""

    name: str
    hydra: Hydra
    _repository: Any = field(default=None, repr=False)

    def search(self, overrides: Sequence[str]) -> None:
        """Heed ``hydra.searchpath`` of these overrides (and of the primary configuration) in the questions below."""
        paths = [text for text in overrides if text.lstrip("+").startswith("hydra.searchpath")]
        _, self._repository = self.loader._parse_overrides_and_create_caching_repo(self.name, paths)

    @property
    def loader(self) -> Any:
        return self.hydra.config_loader

    def read(self, overrides: Sequence[str]) -> list[Override]:
        """The overrides, parsed; those with a glob know what there is to match."""
        found: list[Override] = OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))
        return found

    def is_group(self, name: str) -> bool:
        return bool(name) and "." not in name and bool(self._repository.group_exists(name))

    def choices(self, group: str) -> list[str]:
        return list(self._repository.get_group_options(group, ObjectType.CONFIG))

    def compose(self, overrides: Sequence[str], number: int = 0) -> DictConfig:
        """The configuration with its section ``hydra``, as in the run ``number`` of a sweep."""
        config = compose(self.name, overrides=list(overrides), return_hydra_config=True)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
        HydraConfig.instance().cfg = config  # type: ignore[assignment]  # for ${hydra:…}
        return config


def values_of(config: DictConfig) -> dict[str, Any]:
    """The plain values of a composed configuration, without Hydra's own."""
    plain: Any = {str(key): OmegaConf.select(config, str(key)) for key in config if key != "hydra"}
    return {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in plain.items()}


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines())
    return text or type(error).__name__


def absolute(path: str, script_folder: Path) -> str:
    """``--config-path``: absolute, or relative to the script as Hydra has it, else to where the command was given."""
    if Path(path).is_absolute() or path.startswith("pkg://"):
        return path
    beside = script_folder / path
    return str(beside if beside.is_dir() else Path(path).absolute())
