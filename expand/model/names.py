"""Weight names of this package, SlowFast, PyTorchVideo and MMAction2, and their translation (FACTS: weight names).

A key is a place (a stage's block, or none), a module there, and an entry of the module. Each style writes the three in
its own way; `translate` reads one style and writes another, and is a bijection on the keys of any geometry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

ENTRY = r"weight|bias|running_mean|running_var|num_batches_tracked"
NUMBER = r"0|[1-9]\d{0,4}"  # "00" would be a second name of the same block


@dataclass(frozen=True)
class Style:
    """The form of an implementation's keys.

    `block` is the place of block {block} in stage {stage}, whose count begins at `first_stage`; `outside` and `inside`
    are its modules outside the blocks and inside one, each under our name. `trunk` matches the beginning of every name
    before the head, known or not.
    """

    name: str
    block: str
    first_stage: int
    outside: dict[str, str]
    inside: dict[str, str]
    trunk: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        place = re.escape(self.block.format(stage="STAGE", block="BLOCK"))
        place = place.replace("STAGE", f"(?P<stage>{NUMBER})").replace("BLOCK", f"(?P<block>{NUMBER})")
        return re.compile(rf"(?:{place}\.)?(?P<module>.+)\.(?P<entry>{ENTRY})", re.ASCII)

    @cached_property
    def _ours(self) -> tuple[dict[str, str], dict[str, str]]:
        return {theirs: our for our, theirs in self.outside.items()}, {
            theirs: our for our, theirs in self.inside.items()}

    def parse(self, key: str) -> tuple[tuple[int, int] | None, str, str] | None:
        """Return (stage, block) from 0 or None, our name of the module, and the entry; None for a key of another
        style."""
        if not (match := self._pattern.fullmatch(key)):
            return None
        is_inside = match["stage"] is not None
        stage = int(match["stage"]) - self.first_stage if is_inside else 0
        module = self._ours[is_inside].get(match["module"])
        if module is None or stage < 0:
            return None
        return (stage, int(match["block"])) if is_inside else None, module, match["entry"]

    def write(self, place: tuple[int, int] | None, module: str, entry: str) -> str:
        """Return the key of a weight: the inverse of `parse`."""
        if place is None:
            return f"{self.outside[module]}.{entry}"
        block = self.block.format(stage=place[0] + self.first_stage, block=place[1])
        return f"{block}.{self.inside[module]}.{entry}"


OURS = Style(
    "x3d-expand", "stages.{stage}.{block}", 0,
    {name: name for name in ("stem.spatial", "stem.temporal", "stem.bn", "head.inner", "head.inner_bn",
                             "head.features", "head.classifier")},
    {name: name for name in ("shortcut", "shortcut_bn", "a", "a_bn", "b", "b_bn", "se.reduce", "se.expand", "c",
                             "c_bn")},
    r"(stem|stages)\.")
SLOWFAST = Style(
    "slowfast", "s{stage}.pathway0_res{block}", 2,
    {"stem.spatial": "s1.pathway0_stem.conv_xy", "stem.temporal": "s1.pathway0_stem.conv",
     "stem.bn": "s1.pathway0_stem.bn", "head.inner": "head.conv_5", "head.inner_bn": "head.conv_5_bn",
     "head.features": "head.lin_5", "head.classifier": "head.projection"},
    {"shortcut": "branch1", "shortcut_bn": "branch1_bn", "a": "branch2.a", "a_bn": "branch2.a_bn", "b": "branch2.b",
     "b_bn": "branch2.b_bn", "se.reduce": "branch2.se.fc1", "se.expand": "branch2.se.fc2", "c": "branch2.c",
     "c_bn": "branch2.c_bn"},
    r"s[1-5]\.")
PYTORCHVIDEO = Style(  # its stem calls the spatial convolution conv_t and the temporal one conv_xy
    "pytorchvideo", "blocks.{stage}.res_blocks.{block}", 1,
    {"stem.spatial": "blocks.0.conv.conv_t", "stem.temporal": "blocks.0.conv.conv_xy", "stem.bn": "blocks.0.norm",
     "head.inner": "blocks.5.pool.pre_conv", "head.inner_bn": "blocks.5.pool.pre_norm",
     "head.features": "blocks.5.pool.post_conv", "head.classifier": "blocks.5.proj"},
    {"shortcut": "branch1_conv", "shortcut_bn": "branch1_norm", "a": "branch2.conv_a", "a_bn": "branch2.norm_a",
     "b": "branch2.conv_b", "b_bn": "branch2.norm_b.0", "se.reduce": "branch2.norm_b.1.block.0",
     "se.expand": "branch2.norm_b.1.block.2", "c": "branch2.conv_c", "c_bn": "branch2.norm_c"},
    r"blocks\.[0-4]\.")
MMACTION = Style(
    "mmaction2", "backbone.layer{stage}.{block}", 1,
    {"stem.spatial": "backbone.conv1_s.conv", "stem.temporal": "backbone.conv1_t.conv",
     "stem.bn": "backbone.conv1_t.bn", "head.inner": "backbone.conv5.conv", "head.inner_bn": "backbone.conv5.bn",
     "head.features": "cls_head.fc1", "head.classifier": "cls_head.fc2"},
    {"shortcut": "downsample.conv", "shortcut_bn": "downsample.bn", "a": "conv1.conv", "a_bn": "conv1.bn",
     "b": "conv2.conv", "b_bn": "conv2.bn", "se.reduce": "se_module.fc1", "se.expand": "se_module.fc2",
     "c": "conv3.conv", "c_bn": "conv3.bn"},
    r"backbone\.(?!conv5\.)")
STYLES = {style.name: style for style in (OURS, SLOWFAST, PYTORCHVIDEO, MMACTION)}


def translate(key: str, source: Style, target: Style) -> str | None:
    """Return the key of `source` as `target` writes it, None if `source` has no such key."""
    parsed = source.parse(key)
    return None if parsed is None else target.write(*parsed)


def style_of(keys: Iterable[str]) -> Style | None:
    """Return the style in which most of `keys` are written, None if none of them has a known style."""
    keys = list(keys)
    counts = {style.name: sum(style.parse(key) is not None for key in keys) for style in STYLES.values()}
    best = max(counts, key=counts.__getitem__)
    return STYLES[best] if counts[best] else None
