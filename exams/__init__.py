"""Published benchmarks: their questions, how systems answer them, what a report says."""
