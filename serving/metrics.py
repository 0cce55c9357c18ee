"""Counts of a server, as Prometheus reads them."""

import threading
from collections import defaultdict

# name -> (type, what it counts)
METRICS = {
    "requests_total": ("counter", "Requests answered, by endpoint and HTTP status."),
    "request_seconds_total": ("counter", "Seconds from a request to the end of its answer, by endpoint."),
    "queue_length": ("gauge", "Requests that wait for the model."),
    "questions_running": ("gauge", "Questions that the model works on."),
    "batches_total": ("counter", "Batches answered."),
    "questions_total": ("counter", "Questions answered."),
    "abandoned_total": ("counter", "Requests whose client left before the answer."),
    "latent_steps_total": ("counter", "Latent thoughts of all agents."),
    "tokens_total": ("counter", "Text tokens of all agents, read (prompt) and written (new), and slot positions."),
    "role_seconds_total": ("counter", "Seconds that each role worked, for whole batches."),
}


class Metrics:
    """Counters and gauges; safe to use from several threads."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple, float]] = defaultdict(lambda: defaultdict(float))
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        with self._lock:
            self._values[name][tuple(labels.items())] += amount

    def set(self, name: str, value: float) -> None:
        with self._lock:
            self._values[name][()] = value

    def text(self) -> str:
        """All of them, in Prometheus' text format."""
        lines = []
        with self._lock:
            for name, (kind, what) in METRICS.items():
                lines += [f"# HELP recursivemas_{name} {what}", f"# TYPE recursivemas_{name} {kind}"]
                for labels, value in self._values[name].items() or ([((), 0)] if kind == "gauge" else []):
                    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
                    lines.append(f"recursivemas_{name}{f'{{{shown}}}' if shown else ''} {value:.10g}")
        return "\n".join(lines) + "\n"


def _escaped(text: object) -> str:
    return str(text).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
