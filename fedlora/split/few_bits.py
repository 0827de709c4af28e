"""Frozen linear layers that are kept in fewer bits than they are computed in.

Their matrix is made dense in each product, forward and backward, and dropped at once: autograd
keeps nothing of it. int8 is torchao's weight-only form (a scale for each output), nf4 is
bitsandbytes' (QLoRA, arXiv 2305.14314; a scale for each 64 weights); bf16 is torch's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fedlora.errors import FedloraError
from fedlora.split.frozen_linear import FrozenLinear, linear_names

LIBRARIES: Mapping[str, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
"""What each form needs, which is also the extra that installs it."""
_NF4_BLOCK = 64  # weights with one scale


class FewBitLinear(FrozenLinear):
    """A frozen linear layer, kept in few bits.

    Parameters
    ----------
    weight, bias
        Shapes (d_out, d_in) and (d_out,), where the layer is to be, in the precision of the
        computation.
    form
        ``bf16``, ``int8`` or ``nf4``.

    Attributes
    ----------
    compute_dtype
        Precision of the computation, that of ``weight``.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, form: str) -> None:
        d_out, d_in = weight.shape
        super().__init__(d_in, d_out, bias=False, device="meta")
        self.form, self.compute_dtype = form, weight.dtype
        self.weight = _kept(weight.contiguous(), form)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., d_in) to (..., d_out)."""
        y: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def dense(self) -> torch.Tensor:
        """Return the matrix that it computes with, (d_out, d_in), in a memory of its own."""
        weight: Any = self.weight
        if self.form == "nf4":
            weight = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
        elif self.form == "int8":
            weight = weight.qdata.to(self.compute_dtype) * weight.scale
        return weight.to(self.compute_dtype)  # type: ignore[no-any-return]

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """See ``FrozenLinear``."""
        with torch.no_grad():
            return nn.functional.linear(x, self.dense(), self.bias)

    def gradient(self, g: torch.Tensor) -> torch.Tensor:
        """See ``FrozenLinear``."""
        return g @ self.dense()

    @property
    def kept_bytes(self) -> int:
        """Bytes of matrix, scales and bias."""
        weight: Any = self.weight
        parts: list[torch.Tensor] = [weight]
        if self.form == "nf4":
            parts = [weight.data, weight.quant_state.absmax, weight.quant_state.code]
        elif self.form == "int8":
            parts = [weight.qdata, weight.scale]
        return sum(t.nbytes for t in (*parts, *([] if self.bias is None else [self.bias])))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FewBitLinear) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return ctx.layer.gradient(gradients[0]), None


@torch.no_grad()
def compute_as_kept(model: Any, layers: str, held: range, form: str) -> None:
    """Give an undivided model the matrices that a server computes with, in place.

    Parameters
    ----------
    model
        Hugging Face's.
    layers
        Base-model name of the list of blocks.
    held
        Blocks that the server has; the others stay as they are.
    form
        ``model.weights`` of the run.

    Raises
    ------
    FedloraError
        When the form's library is not installed.
    """
    check_form(form, "cpu")
    blocks = model.base_model.get_submodule(layers)
    for number in held:
        for name in linear_names(blocks[number]):
            module = blocks[number].get_submodule(name)
            by_output = module.weight if isinstance(module, nn.Linear) else module.weight.T
            dense = FewBitLinear(by_output.float(), None, form).dense()
            by_output.copy_(dense)


def predicted_bytes(d_out: int, d_in: int, form: str, width: int) -> int:
    """Return the bytes that a matrix and its scales take.

    Parameters
    ----------
    d_out, d_in
        Its shape.
    form
        ``fp32`` for one that is kept as it is computed with.
    width
        Bytes of a number of the computation.
    """
    numbers = d_out * d_in
    match form:
        case "bf16":
            return 2 * numbers
        case "int8":
            return numbers + width * d_out
        case "nf4":
            return math.ceil(numbers / 2) + 4 * math.ceil(numbers / _NF4_BLOCK) + 4 * 16
    return width * numbers


def check_form(form: str, device: str) -> None:
    """Refuse a form whose library is not installed, or that a device cannot compute with.

    Parameters
    ----------
    form
        ``model.weights``.
    device
        Of the server's blocks.

    Raises
    ------
    FedloraError
        See above.
    """
    library = LIBRARIES.get(form)
    if library and not _installed(library):
        raise FedloraError(
            f"model.weights is {form!r} and {library} is not installed; install "
            f"fedlora[{library}], or set model.weights to bf16"
        )
    try:
        weight = torch.linspace(-1, 1, 128, device=device).view(2, 64)
        layer = FewBitLinear(weight, None, form)
        error = float((layer.gradient(layer.product(weight)) - weight @ weight.T @ weight).norm())
        sound = error < 0.3 * float((weight @ weight.T @ weight).norm())
        reason = "a product comes out wrong"
    except Exception as failure:  # whatever a library makes of a device it does not know
        sound, reason = False, " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    if not sound:
        raise FedloraError(
            f"model.weights is {form!r}, with which {device!r} cannot compute ({reason}); set "
            "model.weights to bf16 or fp32, or compute.device to another"
        )


def _kept(weight: torch.Tensor, form: str) -> nn.Parameter:
    """Return a frozen matrix in its form."""
    kept: Any = weight
    if form == "bf16":
        kept = weight.bfloat16()
    elif form == "int8":
        return _int8(weight)
    elif form == "nf4":
        found: nn.Parameter = (
            _bitsandbytes()
            .nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", blocksize=_NF4_BLOCK,
                compress_statistics=False,
            )
            .to(weight.device)
        )  # fmt: skip
        return found
    return nn.Parameter(kept, requires_grad=False)


def _int8(weight: torch.Tensor) -> nn.Parameter:
    with quietly():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    d_out, d_in = weight.shape
    layer = nn.Linear(d_in, d_out, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return layer.weight


def _bitsandbytes() -> Any:
    with quietly():
        import bitsandbytes

    return bitsandbytes


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence what the libraries say of kernels that they lack, while they are imported.

    PEFT imports them wherever they are installed, once it puts its layers into a model.
    """
    loggers = [logging.getLogger(n) for n in (*LIBRARIES.values(), "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # a module that was taken away
        return False
