"""The configuration, typed and frozen: one class a section, one documented field an option.

`opt` puts the bounds of a value beside its default; `expand.config.load` enforces them and reports every mistake at
once. `None` means "settled when the run starts" wherever a field's text says how; the run's `config.yaml` then holds
the settled value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

AXES = ("x_fast", "x_temporal", "x_spatial", "x_depth", "x_width", "x_bottleneck")
CRITERIA = ("gain_per_gflop", "gain_per_doubling", "accuracy")
DEVICES = ("auto", "cpu", "cuda")
EXECUTORS = ("local", "ray")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
FORMATS = ("auto", "folders", "lists", "kinetics", "ucf101", "hmdb51", "ssv2")


def opt(default: Any, *, gt: float | None = None, ge: float | None = None, le: float | None = None,
        choices: tuple[str, ...] | None = None) -> Any:
    """A field with its bounds (`gt` <, `ge` <=, `le` >=) or, for text and lists of text, its choices."""
    return field(default=default, metadata={"gt": gt, "ge": ge, "le": le, "choices": choices})


@dataclass(frozen=True)
class BuiltinConfig:
    """The built-in clips, rendered as H.264 files on first use, and those of `x3d-expand data synth`.

    A cue has a strength (0: neither in the labels nor in the pixels; 1: as in the built-in set) and a physical size
    that says which networks can see it; docs/decisions/012-synthetic-sets.md has the rule of each.
    """

    size: int = opt(96, ge=32, le=512)
    """Side of the square frames, pixels; an odd number is rounded up."""
    seconds: float = opt(3.0, ge=1.0, le=60.0)
    """Length of a clip, seconds."""
    fps: int = opt(15, ge=8, le=60)
    """Frames a second; 15 are ample for the slowest and fastest label and keep the decoded frames below 2 GB."""
    train_clips: int = opt(640, ge=16, le=1_000_000)
    """Clips in the train split; rounded up to a multiple of the number of classes."""
    val_clips: int = opt(480, ge=16, le=1_000_000)
    """Clips in the val split, on which selection happens."""
    test_clips: int = opt(480, ge=16, le=1_000_000)
    """Clips in the test split, used once, for the winner."""
    seed: int = opt(0, ge=0)
    """Seed of the rendering; the splits take different streams of it."""
    hue: float = opt(1.0, ge=0.0, le=4.0)
    """Strength of the tint, warm or cool: any network sees it."""
    texture: float = opt(1.0, ge=0.0, le=4.0)
    """Strength of the fine lines, rows or columns: needs pixels (X-Spatial)."""
    lines: int = opt(23, ge=1, le=256)
    """Fine lines in a frame's side: a crop of as many pixels cannot show them."""
    motion: float = opt(1.0, ge=0.0, le=4.0)
    """Strength of the drifting bands, up or down: needs a frame rate (X-Fast)."""
    drift_hz: float = opt(0.55, gt=0.0, le=30.0)
    """Bands that pass a point in a second: frames half a period apart cannot show which way they go."""
    period: float = opt(1.0, ge=0.0, le=4.0)
    """Strength of the pulsing light, fast or slow: needs a duration, by degrees (X-Temporal)."""
    pulse_s: float = opt(0.8, gt=0.0, le=60.0)
    """Seconds between two fast pulses of the light; slow ones take three times as long."""
    steps: float = opt(0.0, ge=0.0, le=4.0)
    """Strength of the upright bars that jump, onward or back: needs a duration, all or nothing (X-Temporal)."""
    step_s: float = opt(1.2, gt=0.0, le=60.0)
    """Seconds between two jumps of the bars: a clip must hold two of them."""
    appearance: float = opt(0.0, ge=0.0, le=2.0)
    """Strength of the coloured paper behind it all: needs features (X-Bottleneck, X-Width)."""
    patterns: int = opt(16, ge=2, le=36)
    """Different papers, a class each; `data synth --classes` sets it."""


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and how they are read (FACTS: recipe)."""

    path: str | None = opt(None)
    """A folder of clips (`{train,val[,test]}/<class>/<clip>` or `<class>/<clip>`; a clip is a file, or a folder of
    JPEG or PNG frames), one that holds lists or a published set's annotations, or one such list; null: the built-in
    clips. docs/data.md shows them all."""
    train: str | None = opt(None)
    """The list of the train split, in place of `path`: lines of `path label`, or a published set's annotations."""
    val: str | None = opt(None)
    """The list of the val split; null: made from train."""
    test: str | None = opt(None)
    """The list of the test split, if there is one."""
    root: str | None = opt(None)
    """Where the relative paths of lists start, and where the files that annotations name are looked for; null: the
    list's own folder."""
    format: str = opt("auto", choices=FORMATS)
    """What `path` or the lists are; auto: recognised by content."""
    fold: int = opt(1, ge=1, le=3)
    """Which of the three published splits of UCF101 and HMDB51."""
    class_names: str | None = opt(None)
    """A file with the names of the classes, for lists whose labels are numbers: a name a line, lines of `number name`,
    or JSON {name: number}; null: the numbers are the names."""
    frame_rate: float = opt(30.0, gt=0.0, le=1000.0)
    """Frames a second of clips that are folders of frames."""
    val_share: float = opt(0.2, gt=0.0, le=0.9)
    """Share of the train clips that become val where no val split is given."""
    test_share: float = opt(0.0, ge=0.0, le=0.9)
    """Share of the train clips that become test where no test split is given; 0: no test split is made."""
    group: str | None = opt(None)
    """Clips of one group (person, place, recording) stay together in a split that is made: a regular expression,
    searched in a clip's path; the group is what its parentheses match. null: clips are drawn one by one, but for sets
    whose names say the recording (UCF101, HMDB51)."""
    split_seed: int = opt(0, ge=0)
    """Seed of a split that is made."""
    quarantine: str | None = opt(None)
    """A list of clips to leave out, as `x3d-expand data check` writes it; null: `quarantine.csv` beside the clips,
    where there is one."""
    flip: bool = opt(True)
    """Random horizontal flip in training; false where left and right matter."""
    jitter_min: float = opt(8 / 7, ge=1.0, le=4.0)
    """Smallest short side drawn in training, as a multiple of the crop (paper, section 4: 182 for 160)."""
    jitter_max: float = opt(10 / 7, ge=1.0, le=4.0)
    """Largest short side drawn in training, as a multiple of the crop (228 for 160)."""
    mean: float = opt(0.45, ge=0.0, le=1.0)
    """Mean that is subtracted from pixels in [0, 1]."""
    std: float = opt(0.225, gt=0.0, le=1.0)
    """Standard deviation that they are then divided by."""
    max_unreadable: float = opt(0.05, ge=0.0, le=1.0)
    """Largest share of the clips that may be unreadable before the run stops with an error."""
    timeout_s: float = opt(60.0, gt=0.0, le=86400.0)
    """Longest time that the decoder may take over a single frame, seconds; a clip that hangs is unreadable."""
    cache_dir: str | None = opt(None)
    """Where rendered clips and decoded frames are kept; null: `$XDG_CACHE_HOME/x3d-expand` or `~/.cache/x3d-expand`."""
    cache_gb: float = opt(50.0, ge=0.0)
    """Largest size of all decoded frames in the cache, GB (10^9 bytes). Frames of other sets, longest unused first,
    make room; what still does not fit, or would fill the disk, is decoded at each access. 0: never keep frames."""
    builtin: BuiltinConfig = BuiltinConfig()

    @property
    def is_builtin(self) -> bool:
        """Whether no clips are named, so that the built-in ones are meant."""
        return not (self.path or self.train or self.val or self.test)

    @property
    def source(self) -> str:
        """What names the clips, for messages."""
        return ", ".join(filter(None, (self.path, self.train, self.val, self.test))) or "the built-in clips"


@dataclass(frozen=True)
class BasisConfig:
    """The network that the search starts from: X2D, one frame of 112 px (paper, section 3.1)."""

    frames: int = opt(1, ge=1, le=10_000)
    """gamma_t: frames in the clip."""
    stride: int = opt(28, ge=1, le=10_000)
    """gamma_tau: one frame is taken every `stride` source frames at 30 fps; for one frame, the span that the first
    temporal expansion divides. 28 leads along the paper's path to 4 x 12, 8 x 6 and 16 x 5."""
    resolution: int = opt(112, ge=32, le=11_200)
    """Side of the square input, pixels (gamma_s = resolution / 112)."""
    width: float = opt(1.0, ge=0.01, le=100.0)
    """gamma_w."""
    bottleneck: float = opt(1.0, ge=0.01, le=100.0)
    """gamma_b."""
    depth: float = opt(1.0, ge=0.01, le=100.0)
    """gamma_d."""


@dataclass(frozen=True)
class GridConfig:
    """The step of each axis. The defaults reproduce the whole published family."""

    frames: int = opt(1, ge=1)
    """Frames."""
    resolution: int = opt(8, ge=1)
    """Pixels."""
    width: float = opt(0.05, ge=0.01)
    """In gamma_w."""
    bottleneck: float = opt(0.25, ge=0.01)
    """In gamma_b."""
    depth: float = opt(0.1, ge=0.01)
    """In gamma_d."""


@dataclass(frozen=True)
class LimitsConfig:
    """How far each axis may go; null: no limit."""

    frames: int | None = opt(None, ge=1)
    """Frames in the clip."""
    clip_s: float | None = opt(None, gt=0.0)
    """Time from the first to the last frame of a clip, seconds; null: the median length of the train clips."""
    resolution: int | None = opt(None, ge=32)
    """Pixels."""
    width: float | None = opt(None, gt=0.0)
    """gamma_w."""
    bottleneck: float | None = opt(None, gt=0.0)
    """gamma_b."""
    depth: float | None = opt(None, gt=0.0)
    """gamma_d."""


@dataclass(frozen=True)
class SearchConfig:
    """Progressive expansion (paper, section 3.2)."""

    target_gflops: float | None = opt(None, gt=0.0, le=1e5)
    """The budget: 10^9 multiply-adds of one clip at the training crop, convolutions and linear layers. Required."""
    expansion_rate: float = opt(2.0, gt=1.0, le=16.0)
    """c-hat: each candidate is at most this many times as complex as the current network."""
    criterion: str = opt("gain_per_gflop", choices=CRITERIA)
    """How a step's winner is chosen; docs/decisions/002-selection.md."""
    tolerance: float = opt(0.05, ge=0.0, le=0.5)
    """Share of the target that may stay unused: a network that close below it is not expanded any further."""
    axes: tuple[str, ...] = opt(AXES, choices=AXES)
    """The axes that are tried, in the order that breaks exact ties."""
    temporal_split: float = opt(0.75, ge=0.0, le=1.0)
    """X-Temporal by a factor m: duration x m^split, stride x m^(split - 1)."""
    basis: BasisConfig = BasisConfig()
    grid: GridConfig = GridConfig()
    limits: LimitsConfig = LimitsConfig()


@dataclass(frozen=True)
class RecipeConfig:
    """How one network is trained and judged (paper, section 4; FACTS: recipe)."""

    epochs: int | None = opt(None, ge=1, le=100_000)
    """Passes over the train split; null: enough for about 2,000 updates, at least 30 and at most 256."""
    batch_size: int | None = opt(None, ge=1, le=100_000)
    """Clips in an update; null: an eighth of the train split, at least 8 and at most 128."""
    lr: float = opt(0.1, gt=0.0)
    """Peak learning rate at a batch of 128; scaled linearly to the batch in use."""
    warmup_share: float = opt(0.14, ge=0.0, le=1.0)
    """Share of the updates with a linear warm-up before the half-period cosine (35 of 256 epochs)."""
    warmup_start: float = opt(0.1, ge=0.0, le=1.0)
    """Learning rate at the start of the warm-up, as a share of the peak."""
    momentum: float = opt(0.9, ge=0.0, le=1.0)
    """SGD momentum, Nesterov."""
    weight_decay: float = opt(5e-5, ge=0.0)
    """On all weights but those of batch norm."""
    dropout: float = opt(0.5, ge=0.0, le=1.0)
    """Before the last linear layer."""
    label_smoothing: float = opt(0.0, ge=0.0, le=1.0)
    """Share of the target spread over all classes."""
    ema: float = opt(0.0, ge=0.0, le=0.99999)
    """Decay of an exponential moving average of the weights, one step an update; it is then what is measured and kept.
    0: off, the last weights are kept."""
    accumulation: int = opt(1, ge=1, le=100_000)
    """Parts that a batch is split into, one after another through the network: less memory for the same update, but
    batch norm averages over a part only, so that there are never more than batch norm can be trained in: halves of the
    batch, for a network of one frame and 32 pixels. Doubled by itself where the memory does not suffice."""
    eval_every: int = opt(0, ge=0)
    """Epochs between two measurements on val during the training, for its curve; 0: only at the end."""
    precise_bn_batches: int = opt(200, ge=0)
    """Batches for precise batch-norm statistics before an evaluation (never more than the train split has); 0: off."""
    eval_clips: int = opt(10, ge=1, le=1000)
    """K: clips taken uniformly in time from each video, centre crop, class scores averaged."""


@dataclass(frozen=True)
class RunConfig:
    """How and where the search runs. Only `seed`, `device`, `threads` and `precision` touch the results."""

    name: str | None = opt(None)
    """Name of the run; null: made from the configuration's name and a number."""
    runs_dir: str = opt("runs")
    """Folder that holds the runs."""
    seed: int = opt(0, ge=0)
    """Seed of everything random; a candidate's own seed follows from it and from the candidate's identity."""
    device: str = opt("auto", choices=DEVICES)
    """auto: cuda where there is one, else cpu."""
    executor: str = opt("local", choices=EXECUTORS)
    """local: processes of this machine. ray: tasks of a Ray cluster, or of one that the command starts on this machine
    (docs/cluster.md)."""
    workers: int = opt(1, ge=1, le=1024)
    """Candidates that are trained at the same time, each in a process of its own; several GPUs take turns, and more
    workers than GPUs share them. On a CPU, two processes of one thread train small networks about twice as fast as one
    of two threads."""
    threads: int | None = opt(None, ge=1, le=1024)
    """CPU threads of a training process; null: the cores of the machine // workers."""
    precision: str = opt("auto", choices=PRECISIONS)
    """auto: bf16 autocast on a GPU that has it, fp32 elsewhere. tf32: fp32 whose products a GPU rounds to 10 bits."""
    cuda_graphs: bool = opt(False)
    """On a GPU, record the training step once and replay it: saves the time in which small networks let it wait."""
    checkpoint_every_s: float = opt(30.0, ge=0.0)
    """Seconds between checkpoints of the candidate in training: the most that a kill can cost. 0: at every update."""
    heartbeat_s: float = opt(600.0, ge=0.0)
    """Seconds without a sign of life (an update, a measured batch) after which a training process counts as hung: it is
    killed, and its candidate goes on from its checkpoint in another. 0: never."""
    retries: int = opt(2, ge=0, le=100)
    """How often a candidate goes on after its process died or hung, before it counts as failed."""


@dataclass(frozen=True)
class Config:
    """A whole search."""

    data: DataConfig = DataConfig()
    search: SearchConfig = SearchConfig()
    candidate: RecipeConfig = RecipeConfig()
    final: RecipeConfig = RecipeConfig()
    run: RunConfig = RunConfig()
