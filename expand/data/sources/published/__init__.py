"""Annotations of published sets as they are handed out: which they are, and the clips that they name."""

from expand.data.sources.published.annotations import FORMATS, Annotations, kind_of, survey

__all__ = ["FORMATS", "Annotations", "kind_of", "survey"]
