"""A run, or an adapter with its model, in lmms-eval (which is installed on its own; one picture or clip a question):

python lmms_eval_lime.py --model lime --model_args run=RUN --tasks mme
"""

import tempfile
from pathlib import Path

import lmms_eval.models
from lmms_eval.api.model import lmms

import lime


class Lime(lmms):
    def __init__(self, run, model=None, batch_size=1, device=None, **_):
        super().__init__()
        self.run = lime.open_run(run, *([f"model={model}"] if model else []))

    def generate_until(self, requests):
        return [self._answer(*request.args) for request in requests]

    def _answer(self, question, options, visuals_of, row, task, split):
        self.run.config.evaluation.max_new_tokens = options.get("max_new_tokens", 50)
        visuals = visuals_of(self.task_dict[task][split][row])
        if len(visuals) > 1:
            raise ValueError(f"{task}, row {row}: {len(visuals)} pictures; expected one at most")
        if not visuals or isinstance(visuals[0], str):  # a clip comes as its file, a picture as such
            return self.run.ask(question, video=visuals[0] if visuals else None)
        with tempfile.TemporaryDirectory() as folder:
            visuals[0].convert("RGB").save(Path(folder) / "picture.png")
            return self.run.ask(question, image=Path(folder) / "picture.png")

    def loglikelihood(self, requests):
        raise NotImplementedError("tasks that are scored by likelihood: eval.py evaluation.mode=likelihood")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("one question, one answer")


lmms_eval.models.MODEL_REGISTRY_V2.register_manifest(
    lmms_eval.models.ModelManifest("lime", simple_class_path=f"{Path(__file__).stem}.Lime"), overwrite=True
)
if __name__ == "__main__":
    from lmms_eval.__main__ import cli_evaluate

    cli_evaluate()
