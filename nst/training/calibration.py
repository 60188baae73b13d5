"""Fit a float network into the integers' ranges before quantization is switched on.

An activation level is 64 accumulator units in every stage, by design: no scale can be fitted to
what the float warm-up has learned. But a stage without quantization is positively homogeneous, so
its accumulators can be multiplied by any positive factor if its readers divide by it: the network
computes the same, at another point of the integers' range (equalization, arXiv 1906.04721,
section 4.1, with one factor a stage, since one quantization step is shared by its channels).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nst.network.architecture import LEVEL, OUTPUT, STYLE_CODE, WEIGHT_MAX
from nst.training.dataset import Batch
from nst.training.stage_layer import SAFE_LEVELS, TIE, Staged, StageLayer
from nst.training.trainable import Conditions

ACCUMULATOR_QUANTILE = 0.9999
"""Share of a stage's accumulators that must fit into `SAFE_LEVELS`; the loss sees to the rest."""
WEIGHT_QUANTILE = 0.999
"""Share of a stage's weights that must stay within 4 bits when it grows."""


def accumulator_levels(network: Staged, batches: list[Batch]) -> dict[str, float]:
    """By stage, the magnitude in levels that `ACCUMULATOR_QUANTILE` of its accumulators keep to.

    Args:
        network: Not quantized.
        batches: What to run; the largest value of any batch counts.
    """
    seen = dict.fromkeys(network.stages, 0.0)
    hooks = []
    for name, layer in network.stages.items():

        def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            magnitudes = inputs[0].detach().abs().flatten().cpu().numpy()
            seen[name] = max(seen[name], float(np.quantile(magnitudes, ACCUMULATOR_QUANTILE)))

        hooks.append(layer.quantizer.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            for batch in batches:
                code = network.style_code(batch.style_white, Conditions())
                network(batch.content_white, code, Conditions())
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def factors(network: Staged, levels: dict[str, float]) -> dict[str, float]:
    """By stage, what to multiply it by so that `levels` become at most `SAFE_LEVELS`.

    A stage with room left grows, so that it uses all its levels, but no further than its weights
    stay within 4 bits.
    """
    largest = (WEIGHT_MAX + 0.5) / LEVEL
    found: dict[str, float] = {}
    for name, layer in network.stages.items():
        factor = SAFE_LEVELS / max(levels[name], 1e-3)
        weight = layer.conv.weight.detach() / _of_sources(layer, found, layer.conv.weight)
        typical = float(np.quantile(weight.abs().flatten().cpu().numpy(), WEIGHT_QUANTILE))
        found[name] = min(factor, max(1.0, largest / max(typical, 1e-6)))
    return found


@torch.no_grad()
def rescale_stages(network: Staged, by: dict[str, float]) -> dict[str, Tensor]:
    """Multiply every stage by a positive factor without changing the float network's function.

    Args:
        network: Changed in place.
        by: Factors by stage.

    Returns:
        By parameter, what it was multiplied by, broadcastable to it. (A bias is also shifted.)
    """
    moved: dict[str, Tensor] = {}

    def multiply(name: str, parameter: Tensor, factor: Tensor) -> None:
        parameter.mul_(factor)
        moved[name] = factor

    for name, layer in network.stages.items():
        prefix, weight = f"stages.{name}", layer.conv.weight
        own = torch.as_tensor(by[name], dtype=weight.dtype, device=weight.device)
        multiply(f"{prefix}.conv.weight", weight, own / _of_sources(layer, by, weight))
        # `StageLayer` adds half an accumulator unit after the bias, in either unit the same.
        layer.bias.add_(TIE)
        multiply(f"{prefix}.bias", layer.bias, own)
        layer.bias.sub_(TIE)
        if layer.modulation is not None:
            multiply(f"{prefix}.modulation.weight", layer.modulation.weight, own / by[STYLE_CODE])
    head = network.head.weight
    multiply("head.weight", head, head.new_tensor(1 / by[OUTPUT]))
    return moved


def _of_sources(layer: StageLayer, by: dict[str, float], like: Tensor) -> Tensor:
    """Factors of a stage's inputs `[1, C, 1, 1]`; the pixels' is 1."""
    stage = layer.stage
    parts = zip(stage.sources, stage.source_channels, strict=True)
    flat = [by.get(source, 1.0) for source, channels in parts for _ in range(channels)]
    return torch.tensor(flat, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


def rescale_moments(
    network: Staged, optimizer: torch.optim.Optimizer, moved: dict[str, Tensor]
) -> None:
    """Refer Adam's moments to rescaled parameters: gradients shrink as parameters grow."""
    for name, parameter in network.named_parameters():
        state = optimizer.state.get(parameter, {})
        if name in moved and state:
            state["exp_avg"].div_(moved[name])
            state["exp_avg_sq"].div_(moved[name] ** 2)
