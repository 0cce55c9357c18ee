"""Systems that do not fit one machine, or should use several."""
