"""`python -m expand` is `x3d-expand`; `torchrun -m expand train ...` starts it in several processes."""

from expand.cli import main

main()
