"""Teach a model the names of colours with LiME and the Trainer of transformers: python train_lime.py [STEPS]"""

import random
import sys

from PIL import Image

import lime
from lime.integrations.trainer import LimeTrainer, LimeTrainingArguments
from lime.models.loading import ModelConfig, load_backbone

backbone = load_backbone(ModelConfig("tiny_llava_onevision", dtype="float32"))
model, processor = backbone.model, backbone.processor
model, report = lime.apply(model, num_experts=4, rank=8)
print(report)

COLORS = {"crimson": (200, 30, 50), "teal": (20, 140, 140), "gold": (230, 190, 40), "navy": (20, 30, 120)}
PROMPT = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which paint is this?"}]}],
    add_generation_prompt=True,
)


def rows(count, seed):
    """Pictures in shades of the colours, and the colour's name."""
    draw = random.Random(seed)
    for _ in range(count):
        name, rgb = draw.choice(list(COLORS.items()))
        shade = tuple(value + draw.randint(-20, 20) for value in rgb)
        yield {"image": Image.new("RGB", (64, 64), shade), "answer": name}


def collate(batch):
    """Right-padded prompts with their answers; labels on the answers alone."""
    images = [row["image"] for row in batch]
    texts = [PROMPT + row["answer"] + processor.tokenizer.eos_token for row in batch]
    inputs = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    prompt = processor(text=[PROMPT], images=images[:1], return_tensors="pt")["input_ids"].shape[1]
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :prompt] = -100
    return {**inputs, "labels": labels}


args = LimeTrainingArguments(
    output_dir="outputs/train_lime",
    max_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 60,
    per_device_train_batch_size=8,
    moe_lr=5e-3,  # modulators and their gamma
    peft_lr=5e-3,  # the shared LoRA
    importance_coef=0.1,  # alpha and
    kl_coef=0.01,  # beta of the balance losses
    logging_steps=10,
    report_to="none",
    remove_unused_columns=False,
)
trainer = LimeTrainer(model=model, args=args, train_dataset=list(rows(480, seed=1)), data_collator=collate)
trainer.train()
model.save_pretrained("outputs/train_lime")

model.eval()
held_out = list(rows(20, seed=2))
inputs = processor(text=[PROMPT] * 20, images=[row["image"] for row in held_out], return_tensors="pt").to(model.device)
tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
answers = processor.batch_decode(tokens, skip_special_tokens=True)
right = sum(answer.strip() == row["answer"] for answer, row in zip(answers, held_out, strict=True))
print(f"{right} of 20 held-out pictures named correctly, e.g. {answers[:4]}")
