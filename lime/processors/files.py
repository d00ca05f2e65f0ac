"""The small files of a checkpoint that say how its input is prepared, in every layout that is in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

_NOT_OPTIONS = ("image_processor", "video_processor", "processor_class", "chat_template", "auto_map", "tokenizer")


class CheckpointFiles:
    """The small files of a checkpoint, in a local folder or from the hub and its cache."""

    def __init__(self, path: str, revision: str | None) -> None:
        self.path, self.revision = path, revision
        self.processor = self.json("processor_config.json")

    def find(self, name: str) -> Path | None:
        if Path(self.path).is_dir():
            local = Path(self.path) / name
            return local if local.is_file() else None
        cached = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        return Path(cached) if cached else None

    def json(self, name: str) -> dict[str, Any]:
        """The content of a file, {} where it is absent. ValueError where it is no JSON object."""
        path = self.find(name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON ({error}); fetch the file again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
        return content

    def visual_configs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What configures the image and the video processor. FileNotFoundError where there is none for images."""
        still = self.processor.get("image_processor") or self.json("preprocessor_config.json")
        if not still:
            raise FileNotFoundError(
                f"model.path: {self.path} has neither preprocessor_config.json nor an image_processor in "
                "processor_config.json; fetch the whole checkpoint, processor files included"
            )
        moving = self.processor.get("video_processor") or self.json("video_preprocessor_config.json")
        return still, moving or still

    def options(self) -> dict[str, Any]:
        """The processor's own options, without its parts."""
        return {key: value for key, value in self.processor.items() if key not in _NOT_OPTIONS}

    def chat_template(self) -> str | None:
        raw = self.find("chat_template.jinja")
        if raw is not None:
            return raw.read_text(encoding="utf-8")
        template = self.json("chat_template.json").get("chat_template") or self.processor.get("chat_template")
        return template.get("default") if isinstance(template, dict) else template
