"""Speed and memory, each figure a comparison of ways that run in turn in one process: `recursivemas bench`."""
