"""Adapt a model with LiME, ask it something, save the adapter and load it again."""

import lime
from lime.models.loading import ModelConfig, load_backbone

backbone = load_backbone(ModelConfig("tiny_llava_onevision"))  # comes with the package; others: docs/architectures.md
model, processor = backbone.model, backbone.processor

model, report = lime.apply(
    model,
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
print(report)

question = {"role": "user", "content": [{"type": "text", "text": "What color is the sky?"}]}
prompt = processor.apply_chat_template([question], add_generation_prompt=True)
inputs = processor(text=[prompt], return_tensors="pt")
with lime.record(model) as recorder:
    tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False)
print("answer:", processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print("experts per token:", float(recorder.statistics().mean(lambda layer: layer.experts_per_token)))

model.save_pretrained("outputs/apply_lime")  # the adapter alone, in peft's format
model, _ = lime.load(load_backbone(ModelConfig("tiny_llava_onevision")).model, "outputs/apply_lime")
