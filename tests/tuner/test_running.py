"""An adapted model while it runs: dtypes, threads, outputs changed in place, no tokens, second derivatives, tracing."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn
from transformers import (
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlamaConfig,
    LlamaForCausalLM,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

import lime
from lime.method import fused
from lime.method.deltas.table import MIXTURES
from lime.tuner.towers import find_towers
from tests.tuner import small_models as small

TYPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "windows": {"n_gram": 2},
    "learned": {"router": "learned"},
    "token norm": {"routing_norm": "token"},
    "tensor norm": {"routing_norm": "tensor"},
    "soft": {"soft": True},
    "random features": {"feature_slice": "random"},
    "dora": {"peft": "dora"},
    "lora_fa": {"peft": "lora_fa"},
    "slicefine": {"peft": "slicefine"},
    "prompt_tuning": {"peft": "prompt_tuning", "num_virtual_tokens": 3},
    "any": {"peft": "any"},
    **{name: {"peft": name} for name in MIXTURES},
}
types = pytest.mark.parametrize("options", TYPES.values(), ids=TYPES)


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    return model.eval()


def adapted(**options: Any) -> Any:
    if options.get("peft") in MIXTURES:
        options = {"num_experts": 2, **options}
    if options.get("peft") not in ("any", "prompt_tuning"):
        options = {"r": 4, **options}
    torch.manual_seed(1)
    settings = lime.tuner.preset_settings(**options)
    model = get_peft_model(llama(), lime.LimeConfig.from_settings(settings, init_weights=False))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lime_gamma" in name:
                p.fill_(0.5)
    return model.eval()


def inputs(seed: int = 0, rows: int = 2, tokens: int = 9) -> dict[str, Tensor]:
    """Rows of which all but the first are padded on the left, each by another number of tokens."""
    ids = torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : 1 + (seed + row) % 5] = 0
    return {"input_ids": ids, "attention_mask": mask}


# -- dtypes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float64))],
)
@types
def test_another_dtype(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Forward, generate and training after `.to(dtype)`, constants of an earlier generation included."""
    if options.get("peft") == "any" and dtype == torch.float64:
        pytest.skip("peft computes LoRA's update in the adapter's dtype")
    model, x = adapted(**options), inputs()
    with torch.no_grad():
        before = model(**x).logits
        model.generate(**x, max_new_tokens=2, do_sample=False)
        model.to(dtype)
        after = model(**x).logits
    assert after.dtype == dtype
    real = x["attention_mask"].bool()
    torch.testing.assert_close(after[real].float(), before[real], atol=0.05, rtol=0.05)
    out = model.generate(**x, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    assert all(logits.isfinite().all() for logits in out.logits)
    model.train()
    with lime.record(model) as recorder:
        loss = model(**x, labels=x["input_ids"]).loss
    (loss.float() + recorder.balance().total(1.0, 1.0)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("options", [{}, {"n_gram": 2}, {"peft": "dora"}], ids=["lora", "windows", "dora"])
def test_bf16_decoding_equals_a_pass(options: dict[str, Any]) -> None:
    model, x = adapted(**options).to(torch.bfloat16), inputs()
    out = model.generate(**x, max_new_tokens=4, do_sample=False, eos_token_id=None, return_dict_in_generate=True,
                         output_logits=True)  # fmt: skip
    mask = torch.cat([x["attention_mask"], torch.ones(2, 4, dtype=torch.long)], 1)
    with torch.no_grad():
        whole = model(input_ids=out.sequences, attention_mask=mask).logits[:, -5:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1).float(), whole.float(), atol=0.03, rtol=0.05)


# -- threads -------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(job: Any, count: int = 4) -> list[Any]:
    barrier = threading.Barrier(count)

    def run(index: int) -> Any:
        barrier.wait()
        return job(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize("name", ["lora", "windows", "mocle", "prompt_tuning", "any"])
def test_passes_of_several_threads_keep_apart(name: str, hasty: None) -> None:
    model = adapted(**TYPES[name])

    def job(index: int) -> tuple[Tensor, Tensor, Tensor]:
        x = inputs(index, rows=2 + index % 2, tokens=8 + index)
        with torch.no_grad():
            logits = [model(**x).logits for _ in range(3)]
        tokens = model.generate(**x, max_new_tokens=4, do_sample=False)
        with lime.record(model) as recorder:
            loss = model(**x).logits.square().mean() + recorder.balance().total(1.0, 1.0)
        return torch.stack(logits)[:, x["attention_mask"].bool()], tokens, loss.detach()

    alone = [job(index) for index in range(4)]
    for expected, found in zip(alone, in_threads(job), strict=True):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)


def test_a_recorder_records_its_thread_alone() -> None:
    model = adapted()
    with lime.record(model) as recorder:
        in_threads(lambda index: model(**inputs(index)))
    assert len(recorder) == 0


def test_copies_share_nothing() -> None:
    model, x = adapted(), inputs()
    with lime.record(model) as recorder:
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        torch.testing.assert_close(copied(**x).logits, model(**x).logits)
    assert len(recorder) == len(small.lime_layers(model))


@pytest.mark.parametrize("name", ["lora", "windows", "dora", "learned", "mocle", "moe_dora"])
def test_replicas_of_data_parallel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DataParallel` copies modules without their parameters and runs the copies in threads."""
    module: Any = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda *_: 0)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[t * 1 for t in tensors] for _ in devices],
    )
    model = adapted(**TYPES[name])
    batches = [inputs(0), inputs(3)]
    with lime.record(model) as recorder:
        replicas = module.replicate(model, [0, 0])
        found = in_threads(lambda index: replicas[index](**batches[index]).logits, 2)
    with lime.record(model) as expected_recorder:
        expected = [model(**x).logits for x in batches]
    for x, one, other in zip(batches, expected, found, strict=True):
        torch.testing.assert_close(other[x["attention_mask"].bool()], one[x["attention_mask"].bool()])
    torch.testing.assert_close(recorder.balance(), expected_recorder.balance())


# -- outputs changed in place, no tokens, second derivatives ---------------------------------------------------


@pytest.mark.parametrize("path", ["auto", "torch"])
@pytest.mark.parametrize("name", ["lora", "dora", "hydra_lora", "moe_dora"])
@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8), (8,), (2, 2, 3, 8)])
def test_outputs_may_be_changed_in_place(shape: tuple[int, ...], name: str, path: str) -> None:
    def made(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=inplace))
        settings = lime.tuner.preset_settings(target_modules=["0"], num_experts=2, **{"r": 2, **TYPES[name]})
        return get_peft_model(body, lime.LimeConfig.from_settings(settings, init_weights=False)).eval()

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    grads = []
    with fused.use(path):
        for inplace in (True, False):
            model = made(inplace)
            model(x).square().sum().backward()
            grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def wav2vec2() -> Any:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
        conv_kernel=(4, 3), conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True, mask_time_prob=0.0,
    )  # fmt: skip
    return Wav2Vec2Model(config).eval()


@pytest.mark.parametrize("options", [{}, {"n_gram": 3}, {"peft": "mocle"}], ids=["lora", "windows", "mocle"])
def test_an_audio_model_knows_its_padding(options: dict[str, Any]) -> None:
    settings = lime.tuner.preset_settings(target_modules="all-linear", r=4, num_experts=2, **options)
    base = wav2vec2()
    kind = find_towers(base)[0].kind
    settings.scope = kind
    torch.manual_seed(1)
    model = get_peft_model(base, lime.LimeConfig.from_settings(settings, init_weights=False)).eval()
    audio = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 240:] = 0
    audio = audio * mask
    with lime.record(model) as recorder:
        both = model(audio, attention_mask=mask).last_hidden_state
    alone = model(audio[1:, :240]).last_hidden_state
    torch.testing.assert_close(both[1:, : alone.shape[1]], alone, atol=1e-5, rtol=1e-4)
    counted = {int(one.token_count) for one in recorder.statistics().values()}
    assert counted == {both.shape[1] + alone.shape[1]}
    both.sum().backward()


@pytest.mark.parametrize("options", [{"n_gram": 3}, {"peft": "mocle", "num_experts": 2}], ids=["windows", "mocle"])
def test_a_speech_model_with_a_decoder_knows_its_padding(options: dict[str, Any]) -> None:
    """Its mask counts frames of the input, its encoder's layers see fewer."""
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48)
    config = Speech2TextConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, input_feat_per_channel=8, conv_channels=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    base = Speech2TextForConditionalGeneration(config).eval()
    sound = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, 24:] = 0
    x = {"attention_mask": mask, "decoder_input_ids": torch.tensor([[1, 5, 9, 7], [1, 8, 3, 6]])}
    frozen = base(sound, **x).logits
    model = small.apply_random(base, **options)
    out = model(sound, **x).logits
    assert not torch.allclose(out, frozen, atol=1e-3)
    other = sound.clone()
    other[1, 32:] = 5.0  # beyond what the convolutions bring into the last real frame
    torch.testing.assert_close(model(other, **x).logits, out, atol=1e-5, rtol=1e-4)
    out.sum().backward()


def test_queries_before_the_text_count() -> None:
    """A Q-Former's mask covers its queries and its text; its layers that see the queries alone do not know which."""
    torch.manual_seed(0)
    config = InstructBlipQFormerConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        encoder_hidden_size=32, max_position_embeddings=32,
    )  # fmt: skip
    base = InstructBlipQFormerModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    x = {
        "input_ids": torch.randint(3, 60, (2, 5), generator=generator),
        "query_embeds": torch.randn(2, 4, 32, generator=generator),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
        "encoder_hidden_states": torch.randn(2, 6, 32, generator=generator),
    }
    frozen = base(**x).last_hidden_state
    model = small.apply_random(base)
    out = model(**x).last_hidden_state
    assert not torch.allclose(out, frozen, atol=1e-3)
    alone = model(**{key: value[1:] for key, value in x.items()}).last_hidden_state
    torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-4)
    padded = {**x, "attention_mask": x["attention_mask"].index_fill(1, torch.tensor([7, 8]), 0)}
    with pytest.raises(
        ValueError, match=r"crossattention.*tokens \(2, 4\), .* are \(2, 9\), with padding; .*exclude_m"
    ):
        model(**padded)
    model = small.apply_random(InstructBlipQFormerModel(config).eval(), n_gram=3, exclude_modules=r".*crossattention.*")
    other = {**padded, "input_ids": x["input_ids"].index_fill(1, torch.tensor([3, 4]), 9)}
    out = model(**padded).last_hidden_state[:, :7]
    torch.testing.assert_close(model(**other).last_hidden_state[:, :7], out)


@types
def test_no_tokens_give_no_output_and_no_gradient(options: dict[str, Any]) -> None:
    if options.get("peft") == "prompt_tuning":
        pytest.skip("has no linear layer")
    settings = lime.tuner.preset_settings(target_modules=["0"], num_experts=2, **options)
    config = lime.LimeConfig.from_settings(settings, init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config).train()
    for shape in ((0, 8), (0, 5, 8), (2, 0, 8)):
        with lime.record(model) as recorder:
            out = model(torch.randn(shape))
        assert out.shape == shape
        assert len(recorder) == 0
        out.sum().backward()
        assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["lora", "hydra_lora"])
@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused_by_name_or_right(name: str, power: int) -> None:
    """Also where the incoming gradient is a constant, and torch's own check sees nothing to refuse."""
    settings = lime.tuner.preset_settings(target_modules=["0"], num_experts=2, peft=TYPES[name].get("peft", "lora"))
    config = lime.LimeConfig.from_settings(settings, init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), config).double().eval()
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        (gradient,) = torch.autograd.grad(model(x).pow(power).sum(), x, create_graph=True)
        return gradient.square().sum()

    with pytest.raises(RuntimeError, match=r'cannot be differentiated again.*use\("torch"\)'):
        penalty().backward()
    with fused.use("torch"):
        assert torch.autograd.gradgradcheck(lambda one: model(one).pow(power), x)
        penalty().backward()


def test_create_graph_alone_is_no_second_derivative() -> None:
    grads = []
    for create_graph in (False, True):
        model = adapted().train()
        torch.manual_seed(0)
        model(**inputs()).logits.square().mean().backward(create_graph=create_graph)
        grads.append([p.grad.detach() for p in model.parameters() if p.grad is not None])
    assert grads[0]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@types
def test_a_traced_model_computes_the_same(options: dict[str, Any]) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu())  # type: ignore[no-any-return]

    if options.get("peft") == "prompt_tuning":
        pytest.skip("has no linear layer")
    settings = lime.tuner.preset_settings(target_modules=["one", "two"], num_experts=2, **options)
    torch.manual_seed(0)
    model = get_peft_model(Body(), lime.LimeConfig.from_settings(settings, init_weights=False)).eval()
    generator = torch.Generator().manual_seed(0)
    traced = torch.jit.trace(model.get_base_model(), torch.randn(2, 5, 8, generator=generator), check_trace=False)
    for shape in ((2, 5, 8), (3, 7, 8)):
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(traced(x), model(x))


class Logits(nn.Module):
    """Of a whole model, what a trace can hold: tensors in, a tensor out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name", ["lora", "windows", "learned", "dora", "any", "hydra_lora", "moe_dora", "mocle", "prompt_tuning"]
)
@torch.no_grad()
def test_a_whole_model_is_traced(name: str) -> None:
    """With other tokens, padding and lengths than it was traced with."""
    whole = Logits(adapted(**TYPES[name])).eval()
    traced = torch.jit.trace(whole, tuple(inputs().values()), check_trace=False)
    for given in (inputs(), inputs(seed=1), inputs(tokens=6)):
        real = given["attention_mask"].bool()
        torch.testing.assert_close(traced(**given)[real], whole(**given)[real])


# -- modes, names, compiled models ---------------------------------------------------------------------------


@types
@pytest.mark.parametrize("training", [False, True])
def test_a_model_stays_in_its_mode(options: dict[str, Any], training: bool) -> None:
    options = {"num_experts": 2, "jitter_noise": 0.3, **options}
    model, _ = lime.apply(llama().train(training), **options)
    assert {module.training for module in model.modules()} == {training}
    if options.get("peft") != "any":
        config = lime.LimeConfig.from_settings(lime.tuner.preset_settings(**options), init_weights=False)
        model.add_adapter("two", config)
        assert {module.training for module in model.modules()} == {training}
    if not training:
        x = inputs()
        assert torch.equal(model(**x).logits, model(**x).logits)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("peft", ["lora", "dora", "any", "lora_fa"])
def test_a_type_alone_stays_in_the_model_s_mode(peft: str, training: bool) -> None:
    """The library's own layers begin in training mode, dropout included."""
    options: dict[str, Any] = {} if peft == "any" else {"dropout": 0.5}
    if peft == "any":
        options["base_options"] = {"lora_dropout": 0.5}
    base = llama().train(training)
    base.model.layers[0].train()
    model, _ = lime.apply(base, peft=peft, enabled=False, modules_to_save=["lm_head"], **options)
    first = "base_model.model.model.layers.0"
    modes = {name.startswith(first): module.training for name, module in model.named_modules()}
    assert modes == {True: True, False: training}
    assert {m.training for name, m in model.named_modules() if not name.startswith(first)} == {training}


@types
def test_names_of_adapters_for_each_row_are_refused(options: dict[str, Any]) -> None:
    model, x = adapted(**options), inputs()
    for call in (model, model.generate, model.base_model.model):
        with pytest.raises(NotImplementedError, match=r"adapter_names: .*set_adapter"):
            call(**x, adapter_names=["default", "__base__"])
    model(**x, adapter_names=None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "mocle"])
def test_a_compiled_model_takes_a_state_dict(name: str) -> None:
    settings = lime.tuner.preset_settings(**{"num_experts": 2, **TYPES[name]})
    config = lime.LimeConfig.from_settings(settings, init_weights=False)
    source = inject_adapter_in_model(config, llama()).eval()
    state = get_peft_model_state_dict(source)
    whole = torch.compile(llama(), backend="eager")
    for given in (state, None):
        target = inject_adapter_in_model(
            config, whole if given else torch.compile(llama(), backend="eager"), state_dict=given
        )
        found = target.load_state_dict({f"_orig_mod.{k}": v for k, v in source.state_dict().items()}, strict=True)
        assert not found.unexpected_keys
        x = inputs()
        with torch.no_grad():
            torch.testing.assert_close(target.eval()(**x).logits, source(**x).logits)
        assert {key.removeprefix("_orig_mod.") for key in get_peft_model_state_dict(target)} == state.keys()
