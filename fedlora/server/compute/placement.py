"""A server larger than its device: blocks on several devices, in main memory, or on disk.

A block that is away has no tensors of its own. Hooks of accelerate bring each tensor to the compute
device when its module is called, and drop it afterwards; the LoRA factors are not among them and
stay. PEFT followed by accelerate's own dispatch would leave the factors of such blocks without
storage, and so without gradient, and say nothing. Autograd would keep the tensors it multiplied
with until backward, so these blocks are checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedlora.config import ComputeConfig, is_away, place_blocks
from fedlora.errors import FedloraError
from fedlora.lora.device import check_device
from fedlora.lora.layers import LoraProjection
from fedlora.split import (
    Blocks,
    FewBitLinear,
    PrepackedLinear,
    check_form,
    linear_names,
    replace_linear,
    to_prepack,
)


class AwayWeights(Mapping[str, torch.Tensor]):
    """Tensors of blocks that are away, by their names in the blocks before LoRA.

    Parameters
    ----------
    load
        Reads a tensor from the checkpoint; its pages are mapped, so that it takes no memory of its
        own where no cast is needed.
    """

    def __init__(self, load: Callable[[str], torch.Tensor]) -> None:
        self._load = load
        self._held: dict[str, torch.Tensor | None] = {}

    def add(self, name: str, held: torch.Tensor | None) -> None:
        """Take in a tensor to hold in main memory, or None to read it each time."""
        self._held[name] = held

    def __getitem__(self, name: str) -> torch.Tensor:
        held = self._held[name]
        return self._load(name) if held is None else held

    def __contains__(self, name: object) -> bool:
        return name in self._held  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Placement:
    """Where each block of the server is.

    Parameters
    ----------
    blocks
        The server's part, built but without weights.
    config
        Device, map and limits.
    form
        In which few bits matrices are kept (``ModelConfig.few_bits``); None: as they are.

    Attributes
    ----------
    places
        Place of each block, by its number in the whole model.

    Raises
    ------
    FedloraError
        When a place or a block does not exist, or blocks are away and nothing is checkpointed.
    """

    def __init__(self, blocks: Blocks, config: ComputeConfig, form: str | None = None) -> None:
        self._blocks = blocks
        self._form = form
        self._few: list[str] = []
        self._plain: list[str] = []
        self._placed = config.places
        self._prepack_bytes = config.prepack_mib << 20
        self._device = torch.device(config.device)
        self._checkpoint = config.checkpoint
        numbers = range(blocks.start, blocks.start + len(blocks.layers))
        self.places = place_blocks(config.device_map, config.device, numbers)
        if config.max_memory:
            self.places |= _within(blocks, config.max_memory)
        for place in set(self.places.values()) - {"disk"}:
            check_device(place)
            if form:
                check_form(form, place)
        away = [n for n, place in self.places.items() if is_away(place, config.device)]
        if away and not config.checkpoint:
            raise FedloraError(
                f"compute.max_memory leaves block {away[0]} in {self.places[away[0]]}; set "
                "compute.checkpoint to true, or allow more"
            )
        if away and form:
            raise FedloraError(
                f"model.weights is {form!r}, and block {away[0]} is in {self.places[away[0]]}, from"
                " where it is brought as it is; set model.weights to fp32"
            )
        self._away = set(away)
        self._weights = AwayWeights(blocks.read)

    def load(self) -> None:
        """Give every parameter its tensor; one that is away, or kept in few bits, gets a stand-in.

        A stand-in has type and shape but one number, so that PEFT can be put on the block.
        """
        names = linear_names(self._blocks.model)
        inside = [name for name in names if self._blocks.block_of(name) is not None]
        if self._form:
            self._few = inside
        elif not self._placed:
            self._plain = inside
        few = {f"{name}.weight" for name in self._few}
        for name, parameter in list(self._blocks.model.named_parameters()):
            number = self._blocks.block_of(name)
            if name in few:
                stand_in = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)
                self._blocks.assign(name, stand_in)
                continue
            tensor = self._blocks.read(name)
            if number in self._away:
                held = None if self.places[number] == "disk" else tensor
                self._weights.add(name, held)
                tensor = tensor.new_zeros(1).expand(tensor.shape)
            elif number is not None:
                tensor = tensor.to(self.places[number])
            self._blocks.assign(name, tensor)

    def attach(self, projections: list[LoraProjection], *, trains: bool = True) -> None:
        """Bring what is resident to its device, and hook the rest; call it once LoRA is there.

        Parameters
        ----------
        projections
            Those of the blocks with LoRA layers.
        trains
            Whether gradients go back through the blocks.
        """
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        for name in self._few:
            self._keep_in_few_bits(name)
        for number, layer in enumerate(self._blocks.layers, self._blocks.start):
            place = self.places[number]
            if number in self._away:
                self._hook(layer, f"{self._blocks.family.layers}.{number - self._blocks.start}")
            else:
                layer.to(place)
                if torch.device(place) != self._device:
                    hook = AlignDevicesHook(execution_device=place, io_same_device=True)
                    add_hook_to_module(layer, hook)
        inside = {module for layer in self._blocks.layers for module in layer.modules()}
        for module in self._blocks.model.modules():
            if module not in inside:
                self._move(module)
        self._prepack(trains=trains)
        if self._checkpoint:
            for layer in self._blocks.layers:
                inner: Any = layer.forward
                layer.forward = update_wrapper(partial(_checkpointed, inner), inner)
        assert all(p.A.device.type != "meta" and p.A.requires_grad for p in projections)

    def _prepack(self, *, trains: bool) -> None:
        """Lay out the blocks' matrices, if all are within the limit."""
        layers = {name: self._linear(name) for name in self._plain}
        weights = {name: layer.weight for name, layer in layers.items()}
        if any(w.dtype != torch.float32 or w.device.type != "cpu" for w in weights.values()):
            return
        shapes = {name: weight.shape for name, weight in weights.items()}
        for name in to_prepack(shapes, self._prepack_bytes, trains=trains):
            layer, weight = layers[name], weights[name].detach()
            by_output = weight if isinstance(layer, nn.Linear) else weight.T
            own = PrepackedLinear(by_output, layer.bias, trains=trains)
            replace_linear(self._blocks.model, name, own)

    def _linear(self, name: str) -> Any:
        """Return a linear module, the one inside of its LoRA layer if it has one."""
        module: Any = self._blocks.model.get_submodule(name)
        return getattr(module, "base_layer", module)

    def _keep_in_few_bits(self, name: str) -> None:
        """Read a matrix and put it where its stand-in is, in few bits."""
        number = self._blocks.block_of(name)
        assert number is not None and self._form is not None
        module = self._linear(name)
        weight = self._blocks.read(f"{name}.weight").to(self.places[number])
        by_output = weight if isinstance(module, nn.Linear) else weight.T
        layer = FewBitLinear(by_output, module.bias, self._form)
        replace_linear(self._blocks.model, name, layer)

    def _hook(self, layer: nn.Module, prefix: str) -> None:
        """Put hooks on modules with stand-ins, and move all other tensors to the device."""
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        for name, module in layer.named_modules():
            full = f"{prefix}.{name}" if name else prefix
            own = full.replace(".base_layer", "")
            direct = [key for key, _ in module.named_parameters(recurse=False)]
            stand_ins = {key: f"{own}.{key}" for key in direct if f"{own}.{key}" in self._weights}
            if stand_ins:
                mine = _Named(self._weights, stand_ins)
                hook = AlignDevicesHook(self._device, offload=True, weights_map=mine)
                add_hook_to_module(module, hook)
            else:
                self._move(module)

    def _move(self, module: nn.Module) -> None:
        """Move a module's own tensors, not those of modules in it, to the compute device."""
        module._apply(lambda tensor: tensor.to(self._device), recurse=False)  # type: ignore[no-untyped-call]


class _Named(Mapping[str, torch.Tensor]):
    """A module's own tensors, by their short names."""

    def __init__(self, weights: AwayWeights, names: Mapping[str, str]) -> None:
        self._weights, self._names = weights, names

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._weights[self._names[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _within(blocks: Blocks, limits: Mapping[str, str]) -> dict[int, str]:
    """Let accelerate fill the devices in turn; return the place of each block."""
    from accelerate import infer_auto_device_map

    try:
        # accelerate knows accelerators by number
        keys = {n if n == "cpu" else torch.device(n).index or 0: n for n in limits}
        found = infer_auto_device_map(
            blocks.model,
            max_memory={key: limits[name] for key, name in keys.items()},
            no_split_module_classes=[type(layer).__name__ for layer in blocks.layers],
        )
    except (ValueError, RuntimeError) as error:
        raise FedloraError(
            f"compute.max_memory {dict(limits)} cannot be used ({str(error).splitlines()[0]}); "
            'write it as {"cuda:0" = "20GiB", cpu = "60GiB"}'
        ) from None
    places = {}
    for index in range(len(blocks.layers)):
        parts = f"{blocks.family.layers}.{index}".split(".")
        names = [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
        place = next(found[name] for name in names if name in found)
        places[blocks.start + index] = keys.get(place, str(place))
    return places
