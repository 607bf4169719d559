"""What a worker tells Prometheus, read over HTTP."""

import urllib.request
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """One answer of a worker.

    Args:
        port: of the worker.
    """

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=15) as answer:
            self.text = answer.read().decode()
        self.families: list[Metric] = list(text_string_to_metric_families(self.text))

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 where there are none."""
        return sum(sample.value for sample in self.samples()
                   if sample.name == name and labels.items() <= sample.labels.items())

    def samples(self) -> Iterator:
        for family in self.families:
            yield from family.samples

    def names(self) -> set[str]:
        """What may stand in a query, of metrics without values too."""
        found = {sample.name for sample in self.samples()}
        for family in self.families:
            found |= {f"{family.name}{end}" for end in
                      {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))}
        return found

    def labels(self, name: str) -> set[str]:
        """The names of labels that samples of this name have."""
        return {label for sample in self.samples() if sample.name == name for label in sample.labels}
