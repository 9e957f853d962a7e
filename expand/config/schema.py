"""The configuration, typed and frozen: one class a section, one documented field an option; and all options by their
dotted keys (`search.basis.frames`).

A field's annotation holds the bounds of its value, and `conflicts` beside the fields the rules across options;
`expand.config.load` lets pydantic check values against the annotations and reports every mistake at once. The classes
are standard dataclasses: every command names them, and those that load no configuration start without pydantic.
`None` means "resolved when the run starts" wherever a field's text says how; the run's `config.yaml` then holds the
value.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Interval, MinLen, Predicate

Axis = Literal["x_fast", "x_temporal", "x_spatial", "x_depth", "x_width", "x_bottleneck"]
Criterion = Literal["gain_per_gflop", "gain_per_doubling", "accuracy"]
Device = Literal["auto", "cpu", "cuda"]
FinalStart = Literal["scratch", "candidate"]
Optimizer = Literal["sgd", "adamw"]
Scaling = Literal["none", "linear"]
Executor = Literal["local", "ray"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]
Format = Literal["auto", "folders", "lists", "kinetics", "ucf101", "hmdb51", "ssv2"]
AXES, CRITERIA, EXECUTORS, FORMATS = (get_args(choices) for choices in (Axis, Criterion, Executor, Format))

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


def has_no_duplicates(items: tuple[str, ...]) -> bool:
    """Return True if each item occurs once."""
    return len(set(items)) == len(items)


def is_increasing(items: tuple[float, ...]) -> bool:
    """Return True if each item is above the one before it."""
    return all(one < next_ for one, next_ in pairwise(items))


def has_no_control_characters(text: str) -> bool:
    """Return True if a text can stand in a path, on a terminal and in a log without changing what is around it."""
    return not re.search(r"[\x00-\x1f\x7f-\x9f]", text)


Share = Annotated[float, Interval(ge=0.0, le=1.0)]
Strength = Annotated[float, Interval(ge=0.0, le=4.0)]
Positive = Annotated[float, Gt(0.0)]
Count = Annotated[int, Interval(ge=0, lt=2**63)]
CountFromOne = Annotated[int, Interval(ge=1, lt=2**63)]
Text = Annotated[str, Predicate(has_no_control_characters)]
"""Text that is not empty either, by the rules that hold for all options (`expand.config.option_values`)."""


@dataclass(frozen=True)
class Conflict:
    """A broken rule, the options that it binds (those to blame first), and a way out."""

    keys: tuple[str, ...]
    what: str
    suggestion: str | None = None


@dataclass(frozen=True)
class BuiltinConfig:
    """The built-in clips, rendered as H.264 files on first use, and those of `x3d-expand data synth`.

    A cue has a strength (0: neither in the labels nor in the pixels; 1: as in the built-in set) and a physical size
    that says which networks can see it; docs/decisions/012-synthetic-sets.md has the rule of each.
    """

    size: Annotated[int, Interval(ge=32, le=512)] = 96
    """Side of the square frames, pixels; an odd number is rounded up."""
    seconds: Annotated[float, Interval(ge=1.0, le=60.0)] = 3.0
    """Length of a clip, seconds."""
    fps: Annotated[int, Interval(ge=8, le=60)] = 15
    """Frames a second; 15 are ample for the slowest and fastest label and keep the decoded frames below 2 GB."""
    train_clips: Annotated[int, Interval(ge=16, le=1_000_000)] = 640
    """Clips in the train split; rounded up to a multiple of the number of classes."""
    val_clips: Annotated[int, Interval(ge=16, le=1_000_000)] = 480
    """Clips in the val split, on which selection happens."""
    test_clips: Annotated[int, Interval(ge=16, le=1_000_000)] = 480
    """Clips in the test split, used once, for the winner."""
    seed: Count = 0
    """Seed of the rendering; the splits take different streams of it."""
    hue: Strength = 1.0
    """Strength of the tint, warm or cool: any network sees it."""
    texture: Strength = 1.0
    """Strength of the fine lines, rows or columns: needs pixels (X-Spatial)."""
    lines: Annotated[int, Interval(ge=1, le=256)] = 23
    """Fine lines in a frame's side: a crop of as many pixels cannot show them."""
    motion: Strength = 1.0
    """Strength of the drifting bands, up or down: needs a frame rate (X-Fast)."""
    drift_hz: Annotated[float, Interval(gt=0.0, le=30.0)] = 0.55
    """Bands that pass a point in a second: frames half a period apart cannot show which way they go."""
    period: Strength = 1.0
    """Strength of the pulsing light, fast or slow: needs a duration, by degrees (X-Temporal)."""
    pulse_s: Annotated[float, Interval(gt=0.0, le=60.0)] = 0.8
    """Seconds between two fast pulses of the light; slow ones take three times as long."""
    steps: Strength = 0.0
    """Strength of the upright bars that jump, onward or back: needs a duration, all or nothing (X-Temporal)."""
    step_s: Annotated[float, Interval(gt=0.0, le=60.0)] = 1.2
    """Seconds between two jumps of the bars: a clip must hold two of them."""
    appearance: Annotated[float, Interval(ge=0.0, le=2.0)] = 0.0
    """Strength of the coloured paper behind it all: needs features (X-Bottleneck, X-Width)."""
    patterns: Annotated[int, Interval(ge=2, le=36)] = 16
    """Different papers, a class each; `data synth --classes` sets it."""


@dataclass(frozen=True)
class DataConfig:
    """The clips, and how they are read (paper, section 4)."""

    path: Text | None = None
    """A folder of clips (`{train,val[,test]}/<class>/<clip>`, `<class>/{train,val[,test]}/<clip>` or `<class>/<clip>`;
    a clip is a file, or a folder of JPEG or PNG frames), one that holds lists or a published set's annotations, or one
    such list; null: the built-in clips. docs/data.md shows them all."""
    train: Text | None = None
    """The list of the train split, in place of `path`: lines of `path label`, or a published set's annotations."""
    val: Text | None = None
    """The list of the val split; null: made from train."""
    test: Text | None = None
    """The list of the test split, if there is one."""
    root: Text | None = None
    """The folder that relative paths of lists start from, and in which files named by annotations are looked for; null:
    the list's own folder."""
    format: Format = "auto"
    """The form of `path` or of the lists; auto: recognised by content."""
    fold: Annotated[int, Interval(ge=1, le=3)] = 1
    """The number of the published split of UCF101 and HMDB51."""
    class_names: Text | None = None
    """A file with the names of the classes, for lists whose labels are numbers: a name a line, lines of `number name`,
    or JSON {name: number}; null: the numbers are the names."""
    frame_rate: Annotated[float, Interval(gt=0.0, le=1000.0)] = 30.0
    """Frames a second of clips that are folders of frames."""
    val_share: Annotated[float, Interval(gt=0.0, le=0.9)] = 0.2
    """Share of the train clips that become val where no val split is given."""
    test_share: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.0
    """Share of the train clips that become test where no test split is given; 0: no test split is made."""
    group: Text | None = None
    """Clips of one group (person, place, recording) stay together in a split that is made: a regular expression,
    searched in a clip's path; the group is what its parentheses match. null: clips are drawn one by one, but for sets
    whose names say the recording (UCF101, HMDB51)."""
    split_seed: Count = 0
    """Seed of a split that is made."""
    quarantine: Text | None = None
    """A list of clips to leave out, as `x3d-expand data check` writes it; null: `quarantine.csv` beside the clips,
    where there is one."""
    flip: bool = True
    """Random horizontal flip in training; false where left and right matter."""
    jitter_min: Annotated[float, Interval(ge=1.0, le=4.0)] = 1.05
    """Smallest short side drawn in training, as a multiple of the crop: 168 for 160. The paper's is 8/7 (section 4)."""
    jitter_max: Annotated[float, Interval(ge=1.0, le=4.0)] = 1.25
    """Largest short side drawn in training, as a multiple of the crop: 200 for 160. The paper's is 10/7. The defaults
    lie around the scale of the evaluation, 8/7, and cut less off the frame (docs/decisions/025-small-sets.md)."""
    color_jitter: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.0
    """Strength s of random colour changes in training: a clip's brightness, contrast and saturation are multiplied by
    factors drawn from [1 - s, 1 + s], the same for all its frames; 0: none, as in the paper."""
    mean: Share = 0.45
    """Mean that is subtracted from pixels in [0, 1]."""
    std: Annotated[float, Interval(gt=0.0, le=1.0)] = 0.225
    """Standard deviation that they are then divided by."""
    max_unreadable: Share = 0.05
    """Largest share of the clips that may be unreadable before the run stops with an error."""
    timeout_s: Annotated[float, Interval(gt=0.0, le=86400.0)] = 60.0
    """Longest time that the decoder may take over a single frame, seconds; a clip that hangs is unreadable."""
    cache_dir: Text | None = None
    """The folder of rendered clips and decoded frames; null: `$XDG_CACHE_HOME/x3d-expand` or `~/.cache/x3d-expand`."""
    cache_gb: Annotated[float, Ge(0.0)] = 50.0
    """Largest size of all decoded frames in the cache, GB (10^9 bytes). Frames of other sets, longest unused first,
    make room; what still does not fit, or would fill the disk, is decoded at each access. 0: never keep frames."""
    builtin: BuiltinConfig = BuiltinConfig()

    def conflicts(self) -> Iterator[Conflict]:
        """Yield every rule across these options that their values break."""
        lists = [f"data.{name}" for name in ("train", "val", "test") if getattr(self, name) is not None]
        if lists and self.path is not None:
            yield Conflict(("data.path", *lists), f"data.path and {' and '.join(lists)} name different clips",
                           "keep either the folder or the lists")
        if self.val_share + self.test_share >= 1:
            yield Conflict(("data.val_share", "data.test_share"), "data.val_share and data.test_share leave nothing to "
                           f"train on: {self.val_share:g} + {self.test_share:g}", "make them smaller")
        if self.group is not None:
            try:
                if re.compile(self.group).groups != 1:
                    yield Conflict(("data.group",), "data.group needs one pair of parentheses around the group, got "
                                   f"'{self.group}'", "for instance '_(g[0-9]+)_'")
            except re.error as error:
                yield Conflict(("data.group",), f"data.group is no regular expression: {error}, in '{self.group}'")
        if self.jitter_min > self.jitter_max:
            yield Conflict(("data.jitter_min", "data.jitter_max"), "data.jitter_min must be at most data.jitter_max, "
                           f"got {self.jitter_min:.10g} > {self.jitter_max:.10g}")

    @property
    def is_builtin(self) -> bool:
        """True if no clips are named, so that the built-in ones are meant."""
        return not (self.path or self.train or self.val or self.test)

    @property
    def source(self) -> str:
        """The paths that name the clips, for messages."""
        return ", ".join(filter(None, (self.path, self.train, self.val, self.test))) or "the built-in clips"


@dataclass(frozen=True)
class BasisConfig:
    """The network that the search starts from: X2D, one frame of 112 px (paper, section 3.1)."""

    frames: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """gamma_t: frames in the clip."""
    stride: Annotated[int, Interval(ge=1, le=10_000)] = 28
    """gamma_tau: one frame is taken every `stride` source frames at 30 fps; for one frame, the span that the first
    temporal expansion divides. 28 leads along the paper's path to 4 x 12, 8 x 6 and 16 x 5."""
    resolution: Annotated[int, Interval(ge=32, le=11_200)] = 112
    """Side of the square input, pixels (gamma_s = resolution / 112)."""
    width: Annotated[float, Interval(ge=0.01, le=100.0)] = 1.0
    """gamma_w."""
    bottleneck: Annotated[float, Interval(ge=0.01, le=100.0)] = 1.0
    """gamma_b."""
    depth: Annotated[float, Interval(ge=0.01, le=100.0)] = 1.0
    """gamma_d."""


@dataclass(frozen=True)
class GridConfig:
    """The step of each axis. The defaults reproduce the whole published family."""

    frames: CountFromOne = 1
    """Frames."""
    resolution: CountFromOne = 8
    """Pixels."""
    width: Annotated[float, Ge(0.01)] = 0.05
    """In gamma_w."""
    bottleneck: Annotated[float, Ge(0.01)] = 0.25
    """In gamma_b."""
    depth: Annotated[float, Ge(0.01)] = 0.1
    """In gamma_d."""


@dataclass(frozen=True)
class LimitsConfig:
    """The limit of each axis; null: no limit."""

    frames: CountFromOne | None = None
    """Frames in the clip."""
    clip_s: Positive | None = None
    """Time from the first to the last frame of a clip, seconds; null: the median length of the train clips."""
    resolution: Annotated[int, Interval(ge=32, lt=2**63)] | None = None
    """Pixels."""
    width: Positive | None = None
    """gamma_w."""
    bottleneck: Positive | None = None
    """gamma_b."""
    depth: Positive | None = None
    """gamma_d."""


@dataclass(frozen=True)
class SearchConfig:
    """Progressive expansion (paper, section 3.2)."""

    target_gflops: Annotated[float, Interval(gt=0.0, le=1e5)] | None = None
    """The budget: 10^9 multiply-adds of one clip at the training crop, convolutions and linear layers. Required."""
    expansion_rate: Annotated[float, Interval(gt=1.0, le=16.0)] = 2.0
    """c-hat: each candidate is at most this many times as complex as the current network."""
    criterion: Criterion = "gain_per_gflop"
    """The rule for a step's winner; docs/decisions/002-selection.md."""
    confidence: Annotated[float, Interval(ge=0.5, lt=1.0)] = 0.95
    """How sure a step must be that its winner beats every rival to be called decided; otherwise it is tied
    (docs/decisions/023-confidence.md)."""
    seed_sd: Annotated[float, Interval(ge=0.0, le=0.5)] = 0.03
    """Standard deviation of a candidate's accuracy between seeds that the choices reckon with; the run's own repeats
    correct it."""
    repeat_budget: Annotated[float, Interval(ge=0.0, le=100.0)] = 0.0
    """Where a step is tied, its leader and the rivals tied with it are trained again with other seeds, and their mean
    counts: for at most this many times the multiply-adds of the step. 0: never."""
    rungs: Annotated[tuple[Annotated[float, Interval(gt=0.0, lt=1.0)], ...], Predicate(is_increasing)] = ()
    """Racing: the shares of a candidate's training, such as [0.3, 0.5], at which all candidates of a step are measured
    and those far behind are stopped. Empty: every candidate is trained to its end (docs/methods.md)."""
    race_margin: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.1
    """A candidate is stopped at a rung if it would score below the step's leader even with this much more accuracy."""
    final_start: FinalStart = "scratch"
    """Where the winner's final training starts: with new initial weights, or with the weights that the winner has as a
    candidate. Either way the better of the two on val is handed over."""
    tolerance: Annotated[float, Interval(ge=0.0, le=0.5)] = 0.05
    """Share of the target that may stay unused: a network that close below it is not expanded any further."""
    axes: Annotated[tuple[Axis, ...], MinLen(1), Predicate(has_no_duplicates)] = AXES
    """The axes that are tried, in the order that breaks exact ties."""
    temporal_split: Share = 0.75
    """X-Temporal by a factor m: duration x m^split, stride x m^(split - 1)."""
    basis: BasisConfig = BasisConfig()
    grid: GridConfig = GridConfig()
    limits: LimitsConfig = LimitsConfig()

    def conflicts(self) -> Iterator[Conflict]:
        """Yield every limit below the basis: its axis would have to shrink before it grows."""
        for name in ("frames", "resolution", "width", "bottleneck", "depth"):
            limit, basis = getattr(self.limits, name), getattr(self.basis, name)
            if limit is not None and limit < basis:
                keys = f"search.limits.{name}", f"search.basis.{name}"
                yield Conflict(keys, f"{keys[0]} must be at least {keys[1]}, got {limit:g} < {basis:g}")


@dataclass(frozen=True)
class RecipeConfig:
    """The training and evaluation of one network (paper, section 4)."""

    epochs: Annotated[int, Interval(ge=1, le=100_000)] | None = None
    """Passes over the train split; null: enough for about 2,000 updates, at least 30 and at most 256."""
    batch_size: Annotated[int, Interval(ge=1, le=100_000)] | None = None
    """Clips in an update; null: an eighth of the train split, at least 8 and at most 128."""
    optimizer: Optimizer = "sgd"
    """sgd: with Nesterov momentum, as in the paper. adamw: learns more in a few hundred updates; its rate is of another
    size (0.002) and so is its weight decay (0.05)."""
    lr: Positive = 0.1
    """Peak learning rate; the paper's is 0.1 at a batch of 128."""
    lr_scaling: Scaling = "none"
    """Whether the rate follows the batch in use: none: it is `lr`, since the open epochs give as many updates with any
    batch. linear: it is `lr` x batch / 128, which suits a fixed number of epochs, as in the paper."""
    warmup_share: Share = 0.14
    """Share of the updates with a linear warm-up before the half-period cosine (35 of 256 epochs)."""
    warmup_start: Share = 0.1
    """Learning rate at the start of the warm-up, as a share of the peak."""
    momentum: Share = 0.9
    """Momentum of SGD, Nesterov; of AdamW the decay of its first moment."""
    weight_decay: Annotated[float, Ge(0.0)] = 5e-5
    """On all weights but those of batch norm."""
    dropout: Share = 0.5
    """Before the last linear layer."""
    label_smoothing: Share = 0.0
    """Share of the target spread over all classes."""
    ema: Annotated[float, Interval(ge=0.0, le=0.99999)] = 0.0
    """Decay of an exponential moving average of the weights, one step for each update; the average is then measured and
    kept. 0: off, the last weights are kept."""
    accumulation: Annotated[int, Interval(ge=1, le=100_000)] = 1
    """Micro-batches that a batch is split into (gradient accumulation): less memory for the same update, but batch norm
    averages over a micro-batch only. A micro-batch is never smaller than batch norm needs: two clips for a network of
    one frame and 32 pixels. Doubled automatically if a batch does not fit in memory."""
    eval_every: Count = 0
    """Epochs between two measurements on val during the training, for its curve; 0: only at the end."""
    precise_bn_batches: Count = 200
    """Batches for precise batch-norm statistics before an evaluation (never more than the train split has); 0: off."""
    eval_clips: Annotated[int, Interval(ge=1, le=1000)] = 10
    """K: clips taken uniformly in time from each video, centre crop, class scores averaged."""


@dataclass(frozen=True)
class RunConfig:
    """The machine side of a search. Only `seed`, `device`, `threads` and `precision` touch the results."""

    name: Text | None = None
    """Name of the run; null: made from the configuration's name and a number."""
    runs_dir: Text = "runs"
    """Folder that holds the runs."""
    seed: Count = 0
    """Seed of all random numbers; a candidate's seed follows from it and from the candidate's identity."""
    device: Device = "auto"
    """auto: cuda where there is one, else cpu."""
    executor: Executor = "local"
    """local: processes of this machine. ray: tasks of a Ray cluster, or of one that the command starts on this machine
    (docs/cluster.md)."""
    workers: Annotated[int, Interval(ge=1, le=1024)] = 1
    """Candidates that are trained at the same time, each in its own process. Workers are spread over the GPUs, and
    share them if there are more workers. On a CPU, several processes of one thread train small networks faster than one
    process of several threads (docs/decisions/015-search-time.md)."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads of a training process; null: the cores of the machine // workers."""
    precision: Precision = "auto"
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere. tf32: fp32 whose products a GPU rounds to 10 bits."""
    cuda_graphs: bool = False
    """On a GPU, record the training step once and replay it: faster for small networks, for which the GPU waits."""
    checkpoint_every_s: Annotated[float, Ge(0.0)] = 30.0
    """Seconds between checkpoints of the candidate in training: the most that a kill can cost. 0: at every update."""
    heartbeat_s: Annotated[float, Ge(0.0)] = 600.0
    """Seconds without a heartbeat (an update, a measured batch) after which a training process counts as hung: it is
    killed, and its candidate continues from its checkpoint in another. 0: never."""
    retries: Annotated[int, Interval(ge=0, le=100)] = 2
    """Attempts to continue a candidate after its process died or hung, before it counts as failed."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the rule for names if the run's name breaks it."""
        if self.name is not None and not RUN_NAME.match(self.name):
            yield Conflict(("run.name",), "run.name must be letters, digits, '.', '_' and '-', at most 100, got "
                           f"'{self.name}'", "the folder around it is run.runs_dir")


@dataclass(frozen=True)
class Config:
    """A whole search."""

    data: DataConfig = DataConfig()
    search: SearchConfig = SearchConfig()
    candidate: RecipeConfig = RecipeConfig()
    final: RecipeConfig = RecipeConfig()
    run: RunConfig = RunConfig()

    def conflicts(self) -> Iterator[Conflict]:
        """Yield every rule across options that the values break."""
        for section in (self.data, self.search, self.run):
            yield from section.conflicts()


@functools.cache
def section_fields(section: type) -> Mapping[str, Any]:
    """Return the annotation of each field of a section, in schema order; a dataclass is a section within."""
    return MappingProxyType(typing.get_type_hints(section, include_extras=True))


@functools.cache
def option_annotations() -> Mapping[str, Any]:
    """Return the annotation of every option by dotted key, in schema order."""
    def below(section: type, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, annotation in section_fields(section).items():
            is_section = isinstance(annotation, type) and is_dataclass(annotation)
            found |= below(annotation, f"{prefix}{name}.") if is_section else {prefix + name: annotation}
        return found

    return MappingProxyType(below(Config, ""))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of a configuration (or of a section) by dotted key, in schema order."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values |= flatten(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name: value}
    return values


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Return the configuration with some values replaced: `with_values(config, {"candidate.epochs": 30})`.

    Nothing is checked but the keys (KeyError).
    """
    def with_value(section: Any, value: Any, name: str, *below: str) -> Any:
        return replace(section, **{name: with_value(getattr(section, name), value, *below) if below else value})

    if unknown := values.keys() - flatten(config):
        raise KeyError(min(unknown))
    for key, value in values.items():
        config = with_value(config, value, *key.split("."))
    return config
