"""What MAV does on a GPU, right first and then how fast: `python -m benchmarks.gpu`.

Every part runs in a worker process that is replaced when a part fails or takes too long, so that
the parts after it go on. Figures are written as they come.
"""
