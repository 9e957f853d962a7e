"""Mutations of an untrusted file: bytes and values changed, cut, joined and exchanged."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ABSURD = [None, True, -1, 0, 0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 10**400, -(10**400), 2**63, "",
          "a", "x" * 5000, "\x1b[2J\x07", "\ud800", "$\\frac{1}{0}$", "=cmd|' /C calc'!A1", "[red]bold[/red]",
          "[/]", "<script>alert(1)</script>", "![x](http://x.test)", "../../../etc/passwd",
          "\u202eabc", "s00-basis", "x_fast", [], {}, [[]], {"a": 1}, [None] * 50, {"gamma_t": 1}]
"""Values in place of any other."""


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _places(item, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """`value` with a field or two replaced, taken away or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        places = _places(value)[1:]
        if not places:
            return copy.deepcopy(draw(st.sampled_from(ABSURD)))
        *way, last = draw(st.sampled_from(places))
        owner = value
        for key in way:
            owner = owner[key]
        deed = draw(st.sampled_from(["replace", "replace", "delete", "double"]))
        if deed == "delete":
            del owner[last]
        elif deed == "double" and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[last]))
        else:
            owner[last] = copy.deepcopy(draw(st.sampled_from(ABSURD)))
    return value


@st.composite
def mangled(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes flipped, cut off, taken out, put in, doubled."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(0, 200)))
        deed = draw(st.sampled_from(["flip", "cut", "remove", "insert", "double"]))
        if deed == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1:]
        elif deed == "cut":
            content = content[:at]
        elif deed == "remove":
            content = content[:at] + content[end:]
        elif deed == "insert":
            content = content[:at] + draw(st.binary(max_size=20)) + content[at:]
        else:
            content = content[:end] + content[at:end] + content[end:]
    return content


@st.composite
def journals(draw: st.DrawFn, events: list[dict[str, Any]]) -> bytes:
    """A journal of `events` in which events or bytes were changed."""
    events = list(events)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(events) - 1))
        deed = draw(st.sampled_from(["change", "change", "change", "remove", "double", "move", "end"]))
        if deed == "change":
            events[at] = draw(changed(events[at]))
        elif deed == "end":
            events = events[:at + 1]
        elif len(events) > 1:
            event = events[at] if deed == "double" else events.pop(at)
            if deed != "remove":
                events.insert(draw(st.integers(0, len(events))), event)
    content = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    return draw(mangled(content)) if draw(st.booleans()) else content
