"""The metrics, by name. Every file of this folder is imported and registers its own; nothing else lists them.

A metric of your own needs no file here: a module that `evaluation.module` (of scripts `--module`) names may call
`row_metric` or `register`.
"""

import importlib
import pkgutil

from lime.evaluation.metrics.base import (
    METRICS,
    Metric,
    Rows,
    group_estimate,
    import_metrics,
    metric_of,
    register,
    row_metric,
    score_in_words,
    title_of,
)

__all__ = [
    "METRICS", "Metric", "Rows", "group_estimate", "import_metrics", "metric_of", "register", "row_metric",
    "score_in_words", "title_of",
]  # fmt: skip

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
