"""The review panel: for `callsheet run examples/review/pipeline.py --input docs`, and for the demo."""

from callsheet import FanoutPipeline
from examples.review.agents import (
    CRITIQUE,
    QUESTIONS,
    SUMMARY,
    Duplicates,
    SectionEditor,
    Statistician,
    reader,
)


def panel(model_name: str, files: list[str]) -> FanoutPipeline:
    """Five agents side by side over one document, and an editor who makes one review of what they found.

    Args:
        model_name: as the endpoint `openai` knows it.
        files: paths beside the documents, against which their links are checked.
    """
    return FanoutPipeline(
        [
            reader("summary", SUMMARY, model_name),
            reader("critique", CRITIQUE, model_name),
            reader("questions", QUESTIONS, model_name),
            Statistician("statistics", files),
            Duplicates("duplicates"),
        ],
        reduce=SectionEditor("editor"),
        on_error="collect",
    )


pipeline = panel("stub-extractive", [])
