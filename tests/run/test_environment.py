"""What env.json says of the machine and the program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from expand.config import load_config
from expand.run.environment import describe_environment

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="needs a checkout, not an installed package")
def test_the_environment_names_the_commit_of_the_checkout() -> None:
    head = subprocess.run(["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    config = load_config(values={"run.seed": 7, "run.threads": 3})
    found = describe_environment(config, "a GPU")
    assert found["git"] == head.stdout.strip()
    assert (found["seed"], found["threads"], found["device"]) == (7, 3, "a GPU")
