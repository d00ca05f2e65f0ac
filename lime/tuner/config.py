"""The `peft` configuration of a LiME adapter, as `adapter_config.json` holds it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Any

from peft import PeftConfig

from lime.tuner.saved import FORMAT_VERSION, check_version
from lime.tuner.settings import OPTIONS, LimeSettings


class LimePeftType(str, enum.Enum):  # noqa: UP042 - its `str` is that of peft's own types, from which peft reads names
    """The type's name in `adapter_config.json`; equal, and equal in hash, to the plain string."""

    LIME = "LIME"


@dataclass
class LimeConfig(LimeSettings, PeftConfig):
    """Options of `LimeSettings` plus those that every `peft` configuration has.

    Attributes:
        modules_to_save: further modules to train in full and save with the adapter, by name.
        init_weights: start at an update of zero (the method). `False` starts at a random one, for tests.
        scale_bias: DoRA's magnitude multiplies the frozen bias too, `z' = mag (W0 x + b0)`, as in the authors' code;
            set for adapters of theirs (`lime.integrations.authors`).
        format_version: version of the adapter format (`lime.tuner.saved`); set by this package.

    Raises:
        ValueError: invalid options, all of them at once, or an adapter of a later format.
    """

    modules_to_save: list[str] | None = None
    init_weights: bool = True
    scale_bias: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_version(self.format_version)
        self.format_version = FORMAT_VERSION  # what is in memory, and saved from there, is of the present one
        super().__post_init__()
        self.peft_type = LimePeftType.LIME
        for option in ("target_modules", "exclude_modules"):
            value = getattr(self, option)
            if value is not None and not isinstance(value, str):
                setattr(self, option, sorted(value))
        self.check()
        if self.scale_bias and (self.peft != "dora" or not self.enabled):
            raise ValueError("scale_bias: has no effect without LiME over `peft: dora`; remove it or set that")

    @classmethod
    def from_settings(cls, settings: LimeSettings, **peft_fields: Any) -> LimeConfig:
        """The configuration of some settings; `peft_fields` are fields that `LimeSettings` does not have."""
        return cls(**{option: getattr(settings, option) for option in OPTIONS}, **peft_fields)

    def settings(self) -> LimeSettings:
        """The options alone, detached from this configuration."""
        return LimeSettings(**{f.name: getattr(self, f.name) for f in fields(LimeSettings)})
