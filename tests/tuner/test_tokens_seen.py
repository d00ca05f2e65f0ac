"""Which tokens a layer sees: flattened and packed rows, pooled tokens, experts that are sent some of the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
)

import lime
from lime.method import windows
from lime.tuner.towers import find_towers

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
TYPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "windows": {"n_gram": 3},
    "last": {"n_gram": 3, "window_anchor": "last"},
    "dora": {"peft": "dora", "n_gram": 2},
    "learned": {"router": "learned", "n_gram": 2},
    "any": {"peft": "any", "n_gram": 2},
    "hydra_lora": {"peft": "hydra_lora", "n_gram": 2},
    "mocle": {"peft": "mocle"},
    "more": {"peft": "more"},
}
types = pytest.mark.parametrize("options", TYPES.values(), ids=TYPES)
by_windows_or_sequence = pytest.mark.parametrize("name", [name for name in TYPES if name != "lora"])


def adapt(base: nn.Module, options: dict[str, Any], targets: Any = "all-linear") -> Any:
    torch.manual_seed(1)
    settings = lime.tuner.preset_settings(target_modules=targets, num_experts=2, jitter_noise=0.0, **options)
    settings.scope = find_towers(base)[0].kind
    with torch.no_grad():
        for module in base.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=0.3)
    model = get_peft_model(base, lime.LimeConfig.from_settings(settings, init_weights=False)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lime_delta" in name or "lime_router" in name or "lora_B" in name:
                p.add_(torch.randn(p.shape) * 0.2)
    return model


def llama() -> Any:
    return LlamaModel(LlamaConfig(**TEXT, intermediate_size=48, num_key_value_heads=2))


def ids_of(rows: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


# -- flattened rows and pooled tokens --------------------------------------------------------------------------


@types
@pytest.mark.parametrize("side", ["left", "right"])
def test_flattened_rows_keep_their_sequences(options: dict[str, Any], side: str) -> None:
    """OPT lays the tokens of all rows end to end before its feed-forward layers."""
    model = adapt(OPTModel(OPTConfig(**TEXT, ffn_dim=48, word_embed_proj_dim=32)), options)
    ids = ids_of(2, 8)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 3) if side == "left" else slice(5, 8)] = 0
    with torch.no_grad(), lime.record(model) as recorder:
        both = model(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = [
            model(input_ids=row[kept.bool()][None]).last_hidden_state[0] for row, kept in zip(ids, mask, strict=True)
        ]
    for got, kept, want in zip(both, mask, alone, strict=True):
        torch.testing.assert_close(got[kept.bool()], want, atol=1e-4, rtol=1e-4)
    assert {int(one.token_count) for one in recorder.statistics().values()} == {2 * int(mask.sum())}


@types
def test_a_pooled_token_is_a_sequence_of_its_own(options: dict[str, Any]) -> None:
    """BERT's pooler sees one token of each sequence, (rows, features)."""
    model = adapt(BertModel(BertConfig(**TEXT, intermediate_size=48)), options, targets=["dense"])
    ids = ids_of(3, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask).pooler_output
        alone = [model(input_ids=row[kept.bool()][None]).pooler_output[0] for row, kept in zip(ids, mask, strict=True)]
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-4, rtol=1e-4)


@types
def test_rows_of_a_plain_module(options: dict[str, Any]) -> None:
    """Nothing tells which rows of (rows, features) form a sequence: by token each is routed by itself."""
    model = adapt(nn.Sequential(nn.Linear(8, 8)), options, targets=["0"])
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    if options:
        with pytest.raises(ValueError, match=r"tokens \(5,\), and which of them form a sequence is unknown"):
            model(x)
        sequences = model(x.view(1, 5, 8))
        both = model(torch.stack([x, x.flip(0)]))
        torch.testing.assert_close(both[:1], sequences)
    else:
        torch.testing.assert_close(model(x), torch.cat([model(row) for row in x.split(1)]))
        torch.testing.assert_close(model(x[0]), model(x)[0])


@by_windows_or_sequence
def test_windows_of_an_image_are_no_sequences(name: str) -> None:
    """Swin cuts an image into windows, (images x windows, tokens, features)."""
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    model = adapt(SwinModel(config), TYPES[name], targets=["q_proj", "v_proj"])
    with pytest.raises(ValueError, match=r"its input has tokens \(8, 16\)"):
        model(torch.randn(2, 3, 16, 16))
    plain = adapt(SwinModel(config), {}, targets=["q_proj", "v_proj"])
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain(images).pooler_output[:1], plain(images[:1]).pooler_output, atol=1e-5, rtol=1e-4)


# -- experts -------------------------------------------------------------------------------------------------


class Mixture(PreTrainedModel):
    """A base whose tokens go to experts of their own, the largest first: some experts get none."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig, chosen: int = 2):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.experts = nn.ModuleList([nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3)])
        self.chosen = chosen

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        x_NH = self.embed(input_ids).flatten(0, 1)
        out_NH = torch.zeros_like(x_NH)
        for index, expert in enumerate(self.experts):
            sent_N = (input_ids.flatten() % self.chosen == index).nonzero().flatten().flip(0)
            out_NH = out_NH.index_add(0, sent_N, expert(x_NH[sent_N]))
        return out_NH.view(*input_ids.shape, -1)


@pytest.mark.parametrize("chosen", [1, 2])
def test_experts_that_are_sent_some_of_the_tokens(chosen: int) -> None:
    """With one expert chosen it sees every token, but not in order."""
    config = LlamaConfig(**TEXT)
    model = adapt(Mixture(config, chosen), {}).train()
    ids = ids_of(2, 6)
    both = model(input_ids=ids)
    torch.testing.assert_close(both[:1], model(input_ids=ids[:1]))
    torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)), both)
    with lime.record(model) as recorder:
        model(input_ids=ids).sum().backward()
    assert sum(int(one.token_count) for one in recorder.statistics().values()) == 12
    idle = [p for name, p in model.named_parameters() if "experts.2" in name and p.requires_grad]
    assert idle
    assert all(p.grad is not None and not p.grad.any() for p in idle)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match=r"experts\.[012]: its input has tokens .* with padding"):
        model(input_ids=ids, attention_mask=mask)


@by_windows_or_sequence
@pytest.mark.parametrize("chosen", [1, 2])
def test_experts_do_not_know_sequences(name: str, chosen: int) -> None:
    model = adapt(Mixture(LlamaConfig(**TEXT), chosen), TYPES[name])
    with pytest.raises(ValueError, match=r"experts\.0:default: .* its input has tokens"):
        model(input_ids=ids_of(2, 6))


# -- packed rows ---------------------------------------------------------------------------------------------

LENGTHS = ((4, 1, 6), (7, 3, 1), (11,), (1, 1, 9))


@types
def test_packed_rows_do_not_leak(options: dict[str, Any]) -> None:
    model = adapt(llama(), options)
    ids = ids_of(len(LENGTHS), 11)
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in LENGTHS])
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        for row, lengths, found in zip(ids, LENGTHS, packed, strict=True):
            for one, got in zip(row.split(lengths), found.split(lengths), strict=True):
                want = model(input_ids=one[None], use_cache=False).last_hidden_state[0]
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@by_windows_or_sequence
def test_positions_that_go_on_are_one_sequence(name: str) -> None:
    model = adapt(llama(), TYPES[name])
    ids = ids_of(2, 8)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        given = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        counted = torch.cat([
            model(input_ids=ids[:1]).last_hidden_state,
            torch.nn.functional.pad(model(input_ids=ids[1:, 3:]).last_hidden_state, (0, 0, 3, 0)),
        ])  # fmt: skip
    torch.testing.assert_close(given[mask.bool()], counted[mask.bool()], atol=1e-4, rtol=1e-4)


def test_packed_rows_have_no_place_for_virtual_tokens() -> None:
    model, _ = lime.apply(llama(), peft="prompt_tuning", num_virtual_tokens=2)
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(ValueError, match="give each sequence a row of its own"):
        model(input_ids=ids_of(1, 5), position_ids=positions)
    model(input_ids=ids_of(1, 5), position_ids=torch.arange(5)[None])


def test_packed_rows_after_cached_tokens() -> None:
    """Windows begin again; a decision for a whole sequence would need its beginning."""
    ids, positions = ids_of(1, 4), torch.tensor([[5, 6, 0, 1]])
    for name in ("windows", "mocle"):
        model = adapt(llama(), TYPES[name])
        with torch.no_grad():
            cache = model(input_ids=ids_of(1, 5, 1), use_cache=True).past_key_values
            if name == "windows":
                model(input_ids=ids, position_ids=positions, past_key_values=cache)
            else:
                with pytest.raises(ValueError, match="positions start again"):
                    model(input_ids=ids, position_ids=positions, past_key_values=cache)


@pytest.mark.parametrize(
    ("positions", "mask", "repeats", "expected"),
    [
        ([0, 1, 2, 0, 1], None, False, [3]),
        ([0, 0, 0, 1], None, False, [1, 2]),
        ([0, 1, 5, 6], None, False, [2]),
        ([3, 4, 5], None, False, []),
        ([0, 1, 1, 1, 2, 0], None, True, [5]),
        ([0, 1, 1, 9, 9, 5, 6, 0, 1], None, True, [7]),  # text after a clip of seconds
        ([1, 0, 1, 9, 9, 5, 0, 0, 1], [0, 1, 1, 1, 1, 1, 0, 1, 1], True, [7]),
        ([1, 1, 0, 1, 2], [0, 0, 1, 1, 1], False, []),
        ([0, 1, 2, 0, 0, 1], [1, 1, 1, 0, 0, 1], False, []),
        ([0, 1, 1, 0, 1], [1, 1, 0, 1, 1], False, [3]),
        ([0, 1, 0, 1, 1], [1, 1, 1, 1, 0], False, [2]),
    ],
)
def test_borders(positions: list[int], mask: list[int] | None, repeats: bool, expected: list[int]) -> None:
    mask_BT = None if mask is None else torch.tensor([mask]).bool()
    found = windows.borders(torch.tensor([positions]), mask_BT, repeats=repeats)
    assert found[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("anchor", ["first", "last"])
def test_anchors_between_borders_are_those_of_each_sequence(anchor: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for n_gram in (2, 3, 5):
        mask = torch.rand(6, 12, generator=generator) < 0.8
        border = (torch.rand(6, 12, generator=generator) < 0.3) & mask
        found = windows.anchor_columns(mask, n_gram, anchor, border)
        for row in range(6):
            sequence = border[row].cumsum(-1)
            for one in range(int(sequence.max()) + 1):
                only = mask[row] & (sequence == one)
                expected = windows.anchor_columns(only[None], n_gram, anchor)[0]
                assert torch.equal(found[row][only], expected[only])
