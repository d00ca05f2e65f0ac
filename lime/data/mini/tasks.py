"""The 47 tasks of the embedded benchmark by test split name."""

from __future__ import annotations

from lime.data.mini.items import MiniTask
from lime.data.mini.tasks_image import IMAGE_TASKS
from lime.data.mini.tasks_text import TEXT_TASKS
from lime.data.mini.tasks_video import VIDEO_TASKS

MINI_TASKS: dict[str, MiniTask] = {task.split: task for task in (*IMAGE_TASKS, *TEXT_TASKS, *VIDEO_TASKS)}
