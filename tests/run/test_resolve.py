"""What a run's directory says of its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from expand.config import dump_config, load_config
from expand.errors import RunError
from expand.run.resolve import check_unchanged, stored_config
from expand.rundir.paths import RunPaths


def test_a_run_of_an_earlier_version_keeps_the_learning_rate_that_it_had(tmp_path: Path) -> None:
    """Its configuration does not say how the rate follows the batch: in proportion, as it did then."""
    text = dump_config(load_config(values={"candidate.lr": 0.3}))
    earlier = "".join(line for line in text.splitlines(keepends=True) if "lr_scaling" not in line)
    assert earlier != text
    for kept, scaling in ((text, "none"), (earlier, "linear")):
        (tmp_path / "config.yaml").write_text(kept)
        config = stored_config(RunPaths(tmp_path), {"run.workers": 3})
        assert (config.candidate.lr_scaling, config.final.lr_scaling) == (scaling, scaling)
        assert (config.candidate.lr, config.run.workers) == (0.3, 3)
        check_unchanged(kept, config, "config.yaml")
    with pytest.raises(RunError, match="candidate.lr_scaling: 'none' -> 'linear'"):
        check_unchanged(text, config, "config.yaml")
