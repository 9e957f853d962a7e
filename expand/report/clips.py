"""The results of a check of clips, as tables and text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expand.expansion.text import number, one_line
from expand.report.tables import SimpleTable, lay_out

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SPREADS = ("length_s", "fps", "short_side", "height", "width")
COLUMNS = ("class", "split", "clips", "unreadable",
           *(f"{name}_{part}" for name in SPREADS for part in ("min", "median", "max")))
LISTED_CLASSES = 20
"""Most classes whose figures are printed; of more, those with the fewest clips."""
NARROWEST = 76
"""Characters that the tables need beside the classes' names."""
LISTED_PROBLEMS = 10
"""Problems of a kind that are printed; the report has all."""
TITLES = {
    "missing": "not there, or not to be opened", "empty": "nothing in it", "no-video": "no pictures in it",
    "corrupt": "cannot be decoded", "crash": "crash the decoder", "hang": "hang the decoder",
    "tiny": "pictures too small to show anything", "huge": "pictures too large to be decoded safely",
    "truncated": "damaged, or shorter than announced; used as far as they go",
    "clock": "time stamps that cannot be; frames follow one another at their usual distance there",
    "too-short": "shows next to nothing",
    "duplicate": "the same content in two splits, or in two classes: keep the copy whose class is right",
}


def clips_frame(checked: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each class and split: `COLUMNS`; lengths in seconds, rates in frames a second, sizes in
    pixels."""
    import pandas as pd

    rows = [{"class": name, "split": split, "clips": of["clips"], "unreadable": of["unreadable"],
             **{f"{spread}_{part}": value for spread in SPREADS for part, value in (of[spread] or {}).items()}}
            for name, splits in checked["classes"].items() for split, of in splits.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def check_text(checked: Mapping[str, Any], width: int = 100, encoding: str = "utf-8") -> str:
    """Return the whole of a check (docs/json.md) as plain text, lines at most `width` (at least 76) characters but for
    long paths; ends with a line end. It has an ASCII form of what `encoding` lacks."""
    width, classes, splits = max(NARROWEST, width), checked["classes"], checked["splits"]
    clips = sum(of["clips"] for of in splits.values())
    split_table = _table(encoding, HEADINGS)
    for split, of in splits.items():
        split_table.add_texts(split, *_cells(of))
    parts: list[str | Table] = [
        f"{one_line(checked['data'])}: {clips:,} clips, {len(classes):,} classes",
        *(_wrap(one_line(note), width, "  ") for note in checked["notes"]), "", split_table,
        "least/median/most where they differ; unread: cannot be read; px: short side", ""]
    names = list(classes)
    if len(names) > LISTED_CLASSES:
        train = next(iter(splits))
        counts = {name: classes[name][train] for name in names}
        names.sort(key=lambda name: counts[name]["clips"] - counts[name]["unreadable"])
        del names[LISTED_CLASSES // 2:]
        parts.append(f"The {len(names)} classes with the fewest clips in {train} (of {len(classes):,}; the report has "
                     "all)")
    class_table = _table(encoding, [("class", "left"), *HEADINGS])
    for name in names:
        for place, (split, of) in enumerate(classes[name].items()):
            class_table.add_texts("" if place else one_line(name), split, *_cells(of))
    parts.append(class_table)
    parts += ["\n" + "\n".join(lines) for lines in (_problem_lines(checked, width), _limit_lines(checked, width))]
    return lay_out(parts, width, encoding, wrap=False)


HEADINGS = [("split", "left"), ("clips", "right"), ("unread", "right"), ("seconds", "right"), ("fps", "right"),
            ("px", "right")]


def _table(encoding: str, columns: Sequence[tuple[str, str]]) -> SimpleTable:
    table = SimpleTable(2, encoding)
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=name != "class", overflow="fold",  # type: ignore[arg-type]
                         min_width=len("class") if name == "class" else None)
    return table


def _cells(of: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns after the split."""
    return (f"{of['clips']:,}", f"{of['unreadable']:,}" if of["unreadable"] else "-", _spread(of["length_s"]),
            _spread(of["fps"]), _spread(of["short_side"]))


def _spread(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "-"
    values = [spread[part] for part in ("min", "median", "max")]
    texts = [number(value) if value < 1000 else f"{value:.0f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)


def _wrap(text: str, width: int, indent: str) -> str:
    """Return `text` within `width`; a path is not broken, so that it can be copied."""
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False,
                         break_on_hyphens=False)


def _problem_lines(checked: Mapping[str, Any], width: int) -> Iterator[str]:
    problems = checked["problems"]
    if not problems:
        yield "No problems."
        return
    yield f"Problems: {len(problems):,}, in {len({problem['path'] for problem in problems}):,} clips"
    for kind, title in TITLES.items():
        found = [problem for problem in problems if problem["kind"] == kind]
        if found:
            yield ""
            yield _wrap(f"{kind}, {len(found):,}: {title}", width, "")
        for problem in found[:LISTED_PROBLEMS]:
            mark = "  - " if problem["quarantined"] else "    "
            yield f"{mark}{one_line(problem['path'])}"
            yield _wrap(one_line(problem["reason"]), width, "        ")
        if len(found) > LISTED_PROBLEMS:
            yield f"    ... and {len(found) - LISTED_PROBLEMS:,} more in the report"
    if any(problem["quarantined"] for problem in problems):
        yield ""
        yield "-: goes into the quarantine list, which a search leaves out"


def _limit_lines(checked: Mapping[str, Any], width: int) -> Iterator[str]:
    limits = checked["limits"]
    if limits["clip_s"] is None:
        return
    yield "What these clips allow a search to use:"
    length, frames, resolution, fps = (limits[name] for name in ("clip_s", "frames", "resolution", "fps"))
    yield _wrap(f"length      {length:.2f} s: half of the train clips are shorter, and repeat their last frame "
                "where a network looks at more. A search stops there by itself (search.limits.clip_s).", width, "  ")
    if frames is not None:
        rate = f"{number(fps)} frames a second" + (", of which at most 30 are taken" if fps > 30 else "")
        yield _wrap(f"frames      {frames}: what such a clip has at {rate}; of more, some would be the same. "
                    f"To stop there: --set search.limits.frames={frames}", width, "  ")
    if resolution is not None:
        from expand.config.schema import BasisConfig

        basis = BasisConfig().resolution
        stop = (f"To stop there: --set search.limits.resolution={resolution}" if resolution >= basis else
                f"That is less than a search begins with (search.basis.resolution, by default {basis} px).")
        yield _wrap(f"resolution  {resolution} px: a larger crop has to be enlarged (the median short side is 8/7 of "
                    f"it), which costs time and shows no more. {stop}", width, "  ")
