"""The 47 tasks of the embedded benchmark by test split name."""

from __future__ import annotations

from lime.embedded.benchmark.tasks_image import IMAGE_TASKS
from lime.embedded.benchmark.tasks_text import TEXT_TASKS
from lime.embedded.benchmark.tasks_video import VIDEO_TASKS

MINI_TASKS = {**IMAGE_TASKS, **TEXT_TASKS, **VIDEO_TASKS}
