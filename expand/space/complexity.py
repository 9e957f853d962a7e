"""The cost of a network, in closed form: no model is built (paper, section 3.2; FACTS: symbols and published family).

The published convention counts multiply-adds of convolutions and linear layers for one clip at the training crop.
fvcore counts batch norm besides; both are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from expand.space.factors import Factors
from expand.space.geometry import Block, Geometry, halve


class Layer(NamedTuple):
    """A layer's share: multiply-adds, parameters, output elements of a convolution or linear layer, and the
    elements that a batch norm reads."""

    madds: int
    params: int
    activations: int = 0
    norm_inputs: int = 0


@dataclass(frozen=True)
class Complexity:
    """Multiply-adds of one clip, parameters, activations (output elements of convolutions and linear layers)."""

    madds: int
    params: int
    activations: int
    madds_fvcore: int

    @property
    def gflops(self) -> float:
        """10^9 multiply-adds, as in the paper."""
        return self.madds / 1e9

    @property
    def gflops_fvcore(self) -> float:
        """The same by fvcore's convention."""
        return self.madds_fvcore / 1e9


def _conv(width_in: int, width_out: int, positions: int, kernel: int = 1, groups: int = 1, bias: bool = False) -> Layer:
    weights = width_in // groups * width_out * kernel
    return Layer(weights * positions, weights + (width_out if bias else 0), width_out * positions)


def _norm(width: int, positions: int) -> Layer:
    return Layer(0, 2 * width, norm_inputs=width * positions)


def _block_layers(block: Block, positions_in: int, positions: int) -> Iterator[Layer]:
    yield _conv(block.outer_in, block.inner, positions_in)
    yield _norm(block.inner, positions_in)
    yield _conv(block.inner, block.inner, positions, kernel=27, groups=block.inner)
    yield _norm(block.inner, positions)
    if block.se:
        yield _conv(block.inner, block.se, 1, bias=True)
        yield _conv(block.se, block.inner, 1, bias=True)
    yield _conv(block.inner, block.outer, positions)
    yield _norm(block.outer, positions)
    if block.projection:
        yield _conv(block.outer_in, block.outer, positions)
    if block.projection_bn:
        yield _norm(block.outer, positions)


def counted_layers(geometry: Geometry) -> Iterator[tuple[int, Layer]]:
    """Yield every counted layer, from the stem to the last linear layer, with the number of times that it occurs."""
    side = halve(geometry.resolution)
    positions = geometry.frames * side * side
    yield 1, _conv(3, geometry.stem, positions, kernel=9)
    yield 1, _conv(geometry.stem, geometry.stem, positions, kernel=5, groups=geometry.stem)
    yield 1, _norm(geometry.stem, positions)
    for stage in geometry.stages:
        positions_in, side = positions, halve(side)
        positions = geometry.frames * side * side
        for block, times in Counter(stage).items():  # only a stage's first block is unlike the rest, and stands once
            for layer in _block_layers(block, positions_in if block.stride > 1 else positions, positions):
                yield times, layer
    yield 1, _conv(geometry.stages[-1][-1].outer, geometry.head_inner, positions)
    yield 1, _norm(geometry.head_inner, positions)
    yield 1, _conv(geometry.head_inner, geometry.head, 1)
    yield 1, _conv(geometry.head, geometry.classes, 1, bias=True)


def complexity(geometry: Geometry) -> Complexity:
    """Return the costs of a geometry, in a fraction of a millisecond."""
    madds = params = activations = norm_inputs = 0
    for times, layer in counted_layers(geometry):
        madds += times * layer.madds
        params += times * layer.params
        activations += times * layer.activations
        norm_inputs += times * layer.norm_inputs
    # fvcore counts two operations an element for an affine batch norm in evaluation.
    return Complexity(madds, params, activations, madds + 2 * norm_inputs)


@lru_cache(maxsize=65536)
def complexity_of(factors: Factors, classes: int) -> Complexity:
    """Return the costs of the network of `factors` with `classes` outputs."""
    return complexity(Geometry.of(factors, classes))
