"""The model card of an embedded backbone, written from what its stages recorded and what the probe measured."""

from __future__ import annotations

from typing import Any

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

`{class_name}` with {parameters:,} parameters, trained from scratch on
procedural data. It exists so that the LiME experiments run on a laptop without any download; it describes simple
rendered pictures, short clips and sentences of a small world, and knows nothing else.

- **Data**: dialogues drawn from the text skills, image and video renderers of `lime.embedded.benchmark`, under prompts
  and with label words of their own. No prompt and no item of the embedded benchmark occurs: sentences are divided by a
  hash of their content, pictures and clips are rendered from other seeds.
- **Command**: `{command}`
- **Machine**: {machine}
- **Training**: bfloat16 weights on float32 masters, Muon with AdamW; {stages}

| stage | minutes | steps | loss at the end |
|---|---|---|---|
{stage_rows}

## Held-out probe

{count} fresh items a skill, greedy generation, compared word for word. "Most frequent" is the share of the most
frequent answer among the same items: what a constant answer would score.

| skill | correct | most frequent |
|---|---|---|
{probe_rows}
"""


def card(
    *,
    name: str,
    class_name: str,
    parameters: int,
    command: str,
    machine: str,
    stages: list[dict[str, Any]],
    probe: dict[str, tuple[float, float, int]],
    count: int,
) -> str:
    """The card as Markdown. `stages` as recorded by the training loop, `probe` as returned by `probe.run`."""
    stage_rows = "\n".join(
        f"| {s['name']} | {s['minutes']:.0f} | {s['steps']:,} | "
        f"{', '.join(f'{kind} {loss:.3f}' for kind, loss in sorted(s['losses'].items()))} |"
        for s in stages
    )
    probe_rows = "\n".join(
        f"| {skill} | {100 * right:.0f}% | {100 * common:.0f}% |" for skill, (right, common, _) in probe.items()
    )
    return CARD.format(
        name=name,
        class_name=class_name,
        parameters=parameters,
        command=command,
        machine=machine,
        stages=f"{sum(s['minutes'] for s in stages):.0f} minutes in all.",
        stage_rows=stage_rows,
        probe_rows=probe_rows,
        count=count,
    )
