"""What a run's outbound calls took, in one line."""

from callsheet.errors import RedisUnavailable
from callsheet.resources.accounts import JobUsage, Usage, process_rows
from callsheet.resources.books import job_usage
from callsheet.settings import Settings

_TOGETHER = 1000  # jobs read in one trip


def spent(jobs: list[str], settings: Settings) -> Usage:
    """What some jobs took; inline, what this process did. Nothing, where Redis has gone."""
    if settings.inline:
        return JobUsage.of(process_rows())
    total = Usage()
    try:
        for start in range(0, len(jobs), _TOGETHER):
            total += job_usage(jobs[start:start + _TOGETHER], settings)
    except RedisUnavailable:
        return Usage()
    return total


def in_words(usage: Usage) -> str:
    """One line, or "" where no call was made."""
    if not usage.calls:
        return ""
    words = [f"{usage.calls:,} model calls"]
    for count, what in ((usage.errors, "failed"), (usage.retries, "retries"), (usage.fallbacks, "fallbacks")):
        if count:
            words.append(f"{count:,} {what}")
    if usage.total_tokens:
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        words.append(f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out")
    if usage.cost:
        lacking = f", without {usage.unpriced:,} calls that have no price" if usage.unpriced else ""
        words.append(f"cost {usage.cost:,.4f}{lacking}")
    return ", ".join(words)
