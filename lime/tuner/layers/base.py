"""What every LiME layer has: modulators, routers and settings of each named adapter, and their life in `peft`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lime.tuner.layers.frozen_linear import Shape
from lime.tuner.routing.call import TowerCall
from lime.tuner.routing.hooks import in_backward
from lime.tuner.routing.recorder import Recorder
from lime.tuner.routing.router import MixtureRouter, Router
from lime.tuner.routing.state import RoutingState
from lime.tuner.settings import LimeSettings

MERGE_REFUSED = (
    "a LiME adapter cannot be merged into the base weights: its update depends on the input through the routing "
    "weights, so no fixed weight matrix equals it. Keep the adapter beside the base model"
)


class LimeLayer(nn.Module, BaseTunerLayer):
    """Any number of named LiME adapters of one place in a model.

    Args:
        key: full name of the place in the model.
        scope: name of the tower it belongs to.
        state: the model's open calls and recorder.
    """

    adapter_layer_names = ("lime_delta", "lime_experts", "lime_shared", "lime_gamma", "lime_ranks", "lime_router")
    other_param_names = ("lime_settings",)

    def __init__(self, key: str, scope: str, state: RoutingState):
        super().__init__()
        self.key, self.scope, self.routing_state = key, scope, state
        self.origin_recorder: Recorder | None = None  # of a replica
        self.lime_delta, self.lime_router = nn.ModuleDict(), nn.ModuleDict()
        self.lime_experts, self.lime_shared, self.lime_gamma, self.lime_ranks = (nn.ParameterDict() for _ in range(4))
        self.lime_settings: dict[str, LimeSettings] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.unmerged_weights: list[Tensor] = []  # the frozen weight before each of them

    def _add_modulators(self, name: str, settings: LimeSettings, shape: Shape, dtype: torch.dtype) -> None:
        """Experts, shared modulator and router of the adapter `name`; of a mixture the router; nothing without LiME."""
        self.lime_settings[name] = settings
        if not settings.enabled:
            return
        if settings.spec.is_mixture:
            self.lime_router[name] = MixtureRouter(shape, settings, self.key, dtype)
            return
        width, device = shape.out_features, shape.weight.device
        self.lime_router[name] = Router(shape, settings, self.key, dtype)
        self.lime_experts[name] = nn.Parameter(
            torch.empty(settings.num_experts, width, dtype=dtype, device=device).uniform_(
                1 - settings.modulator_range, 1 + settings.modulator_range
            )
        )
        if settings.shared_modulator:
            self.lime_shared[name] = nn.Parameter(torch.empty(width, dtype=dtype, device=device).normal_(0.0, 0.1))
            self.lime_gamma[name] = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
        if settings.rank_modulation:
            rank = len(self.lime_delta[name].basis())  # type: ignore[operator]
            self.lime_ranks[name] = nn.Parameter(torch.ones(settings.num_experts, rank, dtype=dtype, device=device))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Called by peft after loading: follow the base layer's device, but keep the adapter's own dtype."""
        device = device or self._base_device()
        for container in (self.lime_delta, self.lime_router):
            if adapter_name in container and not any(p.is_meta for p in container[adapter_name].parameters()):
                container[adapter_name].to(device)
        for parameters in self._vectors:
            if adapter_name in parameters and not parameters[adapter_name].is_meta:
                parameters[adapter_name] = parameters[adapter_name].to(device)

    def _keep_mode(self) -> None:
        """New parts are in the mode, of training or evaluation, that the layer is in."""
        for parts in (self.lime_delta, self.lime_router, *self._vectors):
            parts.train(self.training)

    @property
    def _vectors(self) -> tuple[nn.ParameterDict, ...]:
        return self.lime_experts, self.lime_shared, self.lime_gamma, self.lime_ranks

    def _base_device(self) -> torch.device:
        return self.get_base_layer().weight.device  # type: ignore[return-value]

    # -- computation -----------------------------------------------------------------------------------------

    def open_call(self) -> TowerCall:
        """The open call of this layer's tower; outside of one, a call of tokens of which nothing is known.

        Raises:
            RuntimeError: none is open although the layer is recomputed in a backward pass.
        """
        call = self.routing_state.open.get(self.scope)
        if call is not None and call.recorder is None and self.origin_recorder is not None:
            call.recorder = self.origin_recorder
        if call is None and in_backward():
            raise RuntimeError(
                f"{self.key}: recomputed in the backward pass without the record of its forward pass. Switch "
                "checkpointing on with model.gradient_checkpointing_enable, or checkpoint whole towers"
            )
        return TowerCall(self.scope) if call is None else call

    def _idle(self, z: Tensor) -> Tensor:
        """The frozen output of no tokens, as of an expert that none was sent to; parameters get a gradient of zero."""
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                z = z + parameter.flatten()[:0].sum().to(z.dtype)
        return z

    def _replicate_for_data_parallel(self) -> LimeLayer:
        """Called by `DataParallel` in the thread that asked for the pass: its recorder is that of the replicas, too."""
        replica: LimeLayer = super()._replicate_for_data_parallel()
        replica.origin_recorder = self.routing_state.recorder
        return replica

    def _route(self, name: str, x: Tensor, z: Tensor, zhat: Tensor, call: TowerCall | None) -> Tensor:
        """Expert weights of every token, (B, T, E), from an input, the frozen signal and the update, (B, T, ·)."""
        router: Router = self.lime_router[name]  # type: ignore[assignment]
        if not router.calibrated:
            router.refuse(self.key)
        if self.lime_settings[name].router == "learned":
            probabilities = router.learned_probabilities(x)
        else:
            z_picked = router.pick(z)
            probabilities = router.zero_probabilities(z_picked, router.pick(zhat).to(z_picked.dtype), z, zhat, call)
        return router.weights(probabilities, f"{self.key}:{name}", call)

    def _modulators(self, name: str) -> tuple[Tensor, ...]:
        """Experts, and shared modulator with its gamma where there is one."""
        if name in self.lime_shared:
            return self.lime_experts[name], self.lime_shared[name], self.lime_gamma[name]
        return (self.lime_experts[name],)

    # -- what the adapter declares ---------------------------------------------------------------------------

    @property
    def routes(self) -> bool:
        """Whether an adapter of this layer has experts."""
        return any(settings.enabled for settings in self.lime_settings.values())

    def grouped_parameters(self, name: str) -> dict[str, list[nn.Parameter]]:
        """Parameters of an adapter by optimiser group: `modulators` (experts, learned router, shared, gamma, those of
        the rank) and `peft`."""
        modulators: list[nn.Parameter] = []
        if name in self.lime_experts:
            modulators.append(self.lime_experts[name])
        if name in self.lime_router:
            modulators += self.lime_router[name].parameters()
        if name in self.lime_shared:
            modulators += [self.lime_shared[name], self.lime_gamma[name]]
        if name in self.lime_ranks:
            modulators.append(self.lime_ranks[name])
        return {"modulators": modulators, "peft": list(self._trainable_of_delta(name))}

    def up_parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters of an adapter that lead from its rank space to the outputs: B of LoRA."""
        if name not in self.lime_delta:
            return []
        delta: Any = self.lime_delta[name]
        return [getattr(delta, key) for key in getattr(delta, "ups", ())]

    def _trainable_of_delta(self, name: str) -> Iterator[nn.Parameter]:
        if name not in self.lime_delta:
            return iter(())
        delta = self.lime_delta[name]
        return (p for key, p in delta.named_parameters() if key not in delta.frozen)  # type: ignore[operator]

    def _freeze_non_trainable_peft_weights(self, adapter_names: str | Sequence[str] | None = None) -> None:
        """Called by peft whenever it may have unfrozen a whole adapter."""
        for delta in self.lime_delta.values():
            for key in delta.frozen:  # type: ignore[union-attr]
                delta.get_parameter(key).requires_grad_(False)

    # -- merging ---------------------------------------------------------------------------------------------

    def check_merge(self, adapter_names: list[str] | None) -> None:
        """Raise `NotImplementedError` where an adapter's update depends on the input, so that no weight equals it."""
        for name in self.active_adapters if adapter_names is None else adapter_names:
            if name in self.lime_settings and self.lime_settings[name].enabled:
                raise NotImplementedError(MERGE_REFUSED)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update of adapters without LiME to the frozen weight (`lime.tuner.layers.merging`)."""
        self.check_merge(adapter_names)

    def unmerge(self) -> None:
        """Take merged updates off the frozen weight."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the frozen weight, in its shape."""
        self.check_merge([adapter])
        raise NotImplementedError(f"{self.key}: its adapter adds nothing to a weight")

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False

    def __repr__(self) -> str:
        return "lime." + super().__repr__()
