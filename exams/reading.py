"""A benchmark's rows, through `datasets`: from the Hub, or from a file in the same schema."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors_recursivemas import InputError
from .table import Benchmark, Row, read_rows

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_rows(benchmark: Benchmark, data: str | Path | None = None, limit: int | None = None) -> list[Row]:
    """The rows of a benchmark, read and checked.

    Args:
        benchmark: which one.
        data: a file in the benchmark's own schema (json, jsonl, parquet or csv), in place of the Hub.
        limit: only so many, from the start.

    Raises:
        InputError: `datasets` is not installed, there is no such file, it cannot be read, or a row is none of the
            benchmark's.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        hint = "pip install 'recursivemas[benchmark]'"
        raise InputError("Benchmarks are read by the package datasets.", found=error, hint=hint) from error
    where = str(data or benchmark.dataset)
    if data is not None:
        path = Path(data)
        if path.suffix.lower() not in FORMATS:
            expected = f"a name that ends in {', '.join(FORMATS)}"
            raise InputError("Benchmarks are no such files.", where="--data", found=where, expected=expected)
        if not path.is_file():
            raise InputError("There is no such file.", where="--data", found=where)
    try:
        rows: Iterable[Mapping[str, Any]]
        if data is not None:  # read as it is needed: no copy in the cache
            form = FORMATS[Path(data).suffix.lower()]
            rows = datasets.load_dataset(form, data_files=str(Path(data).resolve()), split="train", streaming=True)
        elif benchmark.files:
            files = [f"hf://datasets/{benchmark.dataset}/{name}" for name in benchmark.files]
            rows = datasets.load_dataset("json", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(benchmark.dataset, benchmark.config, split=benchmark.split)
        found = list(itertools.islice(rows, limit))
    except Exception as error:  # of the Hub's client, of Arrow, of the formats: each has its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        hint = "without network, --data FILE takes the same rows from a file"
        if "gated" in reason.lower() or "authenticated" in reason.lower():
            hint = f"ask for access at https://huggingface.co/datasets/{benchmark.dataset}, then `hf auth login`"
        problem = "A file of rows cannot be read." if data is not None else "A benchmark cannot be loaded."
        raise InputError(problem, where=where, found=reason, hint=None if data is not None else hint) from error
    if not found:
        raise InputError("There is no row.", where=where)
    return read_rows(benchmark, found, where)
