"""What the benchmarks share: one clock, one count of memory, the networks that are measured."""
