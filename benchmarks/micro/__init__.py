"""What each part costs by itself, so that a regression names its place.

`python -m benchmarks.micro` measures; `--quick` only looks whether every benchmark runs.
"""
