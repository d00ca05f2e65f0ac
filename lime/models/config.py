"""Where earlier versions had a backbone's options, for programs that import them; see `lime.processors.config`."""

from lime.processors.config import ImageConfig, ModelConfig, RecipeConfig, VideoConfig

__all__ = ["ImageConfig", "ModelConfig", "RecipeConfig", "VideoConfig"]
