"""The efficiency panels, from the rows of a record."""

from __future__ import annotations

from typing import Any

import pytest

from lime.experiments.figures.efficiency import PUBLISHED, efficiency_figure, label


def row(method: str, index: int) -> dict[str, Any]:
    time = {"median": 100.0 + index, "q1": 90.0 + index, "q3": 120.0 + index}
    return {
        "method": method,
        "milliseconds": time,
        "rows_per_second": 40.0,
        "peak_mib": 2048.0,
        "trainable": 1000 * (1 + index),
    }


def test_four_panels_with_a_bar_for_every_method() -> None:
    rows = [row(method, index) for index, method in enumerate([*PUBLISHED, "moe_lora:loop", "lora"])]
    figure = efficiency_figure(rows)
    time, throughput, memory, parameters = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "seconds a step",
        "rows a second",
        "peak memory, GiB",
        "trained parameters, thousands",
    ]
    assert [text.get_text() for text in time.get_yticklabels()][3:5] == ["LiME LoRA", "LiME DoRA"]
    assert [bar.get_width() for bar in memory.patches] == [2.0] * len(rows)
    assert [bar.get_width() for bar in parameters.patches] == [index + 1.0 for index in range(len(rows))]
    assert len(throughput.patches) == len(rows)
    kinds = [text.get_text() for text in figure.legends[0].get_texts()]
    assert kinds == ["LiME", "MoE baseline", "loop over experts", "without experts"]


def test_names() -> None:
    assert label("lime_lora_fa") == "LiME LoRA-FA"
    assert label("moe_lora:loop") == "MoE-LoRA (loop)"


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no training steps"):
        efficiency_figure([])
    with pytest.raises(ValueError, match="no training steps"):
        efficiency_figure([{"method": "lora", "kept_per_token": 8}])
    with pytest.raises(ValueError, match="appears twice"):
        efficiency_figure([row("lora", 0), row("lora", 1)])


@pytest.mark.parametrize("others", [None, {"lime_lora": (1.0, 1.0, 1.0, 1.0), "moe_lora": (9.0, 9.0, 9.0, 9.0)}])
def test_value_labels_stay_inside_their_panels(others: dict[str, tuple[float, ...]] | None) -> None:
    rows = [
        {"method": method, "milliseconds": {"q1": 900.0, "median": 1000.0, "q3": q3}, "rows_per_second": 1234.5,
         "peak_mib": 123_456.0, "trainable": 123_456_789}
        for method, q3 in (("lime_lora", 1100.0), ("moe_lora", 9000.0))
    ]  # fmt: skip
    figure = efficiency_figure(rows, others)
    figure.canvas.draw()
    for axes in figure.axes:
        panel = axes.get_window_extent()
        for text in axes.texts:
            box = text.get_window_extent()
            assert panel.x0 <= box.x0, text
            assert box.x1 <= panel.x1, text
