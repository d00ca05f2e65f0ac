"""Ask a model that LiME has adapted, then adapt one anew, save the adapter and load it again."""

from pathlib import Path

import numpy as np
from PIL import Image

import lime
from lime.embedded.benchmark.scenes_image import digit
from lime.models.loading import ModelConfig, load_backbone

backbone = load_backbone(ModelConfig("tiny_llava_onevision"))  # comes with the package; others: docs/models.md
model, processor = backbone.model, backbone.processor
model, _ = lime.load(model, Path(__file__).with_name("adapter"))  # trained by the main job, python train.py

seven, _ = digit(np.random.default_rng(1), value=7)  # a picture of 32 x 32 pixels
QUESTIONS = {
    "Which digit is in the image? Answer with a number.": Image.fromarray(seven),
    "Choose the best option.\nanna wants to open the door and will use the\n\nOptions:\nA. key\nB. spoon": None,
}


def answer(question, image):
    """What the model says, greedily."""
    content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=image, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


for question, image in QUESTIONS.items():
    with lime.record(model) as recorder:
        adapted = answer(question, image)
    experts = float(recorder.statistics().mean(lambda layer: layer.experts_per_token))
    with model.disable_adapter():
        frozen = answer(question, image)
    print(f"{question}\n-> {adapted} (frozen backbone: {frozen}; {experts:.1f} of 4 experts carry weight)\n")

model, report = lime.apply(
    load_backbone(ModelConfig("tiny_llava_onevision")).model,
    targets=["q_proj", "k_proj", "v_proj", "o_proj"],  # left out: the attention projections
    num_experts=4,  # modulators per layer
    rank=2,  # of the one shared LoRA
    use_shared_LiME=True,  # one more modulator, always on
    n_gram=1,  # tokens that share a routing decision
    auto_topk=True,  # or auto_topk=False, top_k=2
    auto_topk_threshold=0.5,
    temperature=0.5,  # of the routing softmax
    gamma_routing=0.7,  # share of the update in the routing signal
    jitter_noise=0.1,  # on the routing, in training
)
print(report)  # trained next: examples/train_lime.py
model.save_pretrained("outputs/apply_lime")  # the adapter alone, in peft's format
model, _ = lime.load(load_backbone(ModelConfig("tiny_llava_onevision")).model, "outputs/apply_lime")
