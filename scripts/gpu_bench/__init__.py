"""The stages of `scripts/bench_gpu` and `scripts/bench_gpu_full`, and what runs them."""
