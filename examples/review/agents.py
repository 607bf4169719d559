"""The agents of the review panel: three that ask a chat model, two that compute, and those that put it together."""

from collections.abc import Sequence
from typing import Any, cast

from callsheet import AgentBase, Msg
from callsheet.models import ChatModelBase, OpenAIChatModel
from examples.review.analysis import analyse, compare, near_duplicates, repeated_passages
from examples.review.documents import Notice
from examples.review.report import DocumentReview, document_section, render_report


class Reader(AgentBase):
    """Asks a chat model one thing about a document; waits on the network, so it runs on an io worker.

    Args:
        name: also the part of the review that the answer becomes.
        task: the system prompt.
        model: the chat model, which travels as its name and its endpoint's.
    """

    def __init__(self, name: str, task: str, model: ChatModelBase) -> None:
        self.name = name
        self.task = task
        self.model = model

    async def reply(self, msg: Msg) -> Msg:
        """The model's answer about the document in `msg`."""
        text = msg.get_text_content() or ""
        prompt = [{"role": "system", "content": self.task}, {"role": "user", "content": text}]
        response = await self.model(prompt)
        answer = Msg(self.name, "", "assistant", metadata={"part": self.name})
        if isinstance(response, Sequence) or hasattr(response, "content"):
            answer.content = list(response.content)
        else:
            async for chunk in response:  # each chunk holds the whole answer so far
                answer.content = list(chunk.content)
                await self.print(answer, last=False)
        await self.print(answer, last=True)
        return answer


class Statistician(AgentBase):
    """Keywords, readability, vocabulary and structure of the whole text; computes, so it runs on a cpu worker."""

    def __init__(self, name: str, files: list[str]) -> None:
        self.name = name
        self.files = files

    def reply(self, msg: Msg) -> Msg:
        """The analyses, in the metadata."""
        path = str(msg.metadata.get("path", "document"))
        found = {"title": str(msg.metadata.get("title", path)),
                 **analyse(msg.get_text_content() or "", path, self.files)}
        return Msg(self.name, "analysed", "assistant", metadata={"part": self.name, "analysis": found})


class Duplicates(AgentBase):
    """Passages that stand twice in the document."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        """The duplicates, in the metadata."""
        texts = {str(msg.metadata.get("path", "document")): msg.get_text_content() or ""}
        found: dict[str, Any] = {"duplicates": near_duplicates(texts), "repeats": repeated_passages(texts)}
        return Msg(self.name, f"{len(found['duplicates'])} duplicates", "assistant",
                   metadata={"part": self.name, "analysis": found})


class SectionEditor(AgentBase):
    """Makes one review of what the panel found about one document."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def reply(self, msgs: list[Msg]) -> Msg:
        """The review, in the metadata; its section as text."""
        review: dict[str, Any] = {}
        failures: dict[str, str] = {}
        for msg in msgs:
            if "error" in msg.metadata:
                error = cast(dict[str, Any], msg.metadata["error"])
                failures[msg.name] = str(error["message"])
            elif "analysis" in msg.metadata:
                review |= cast(dict[str, Any], msg.metadata["analysis"])
            elif msg.name == "questions":
                lines = [line.strip(" -*0123456789.") for line in (msg.get_text_content() or "").splitlines()]
                review["questions"] = [line for line in lines if line]
            else:
                review[msg.name] = msg.get_text_content() or ""
        if failures:
            review["failures"] = failures
        section = document_section(cast(DocumentReview, review))
        return Msg(self.name, section, "assistant", metadata={"review": review})


class Librarian(AgentBase):
    """Compares all documents with each other."""

    def __init__(self, name: str) -> None:
        self.name = name

    def reply(self, msgs: list[Msg]) -> Msg:
        """The comparison, in the metadata."""
        texts = {str(msg.metadata["path"]): msg.get_text_content() or "" for msg in msgs}
        return Msg(self.name, f"{len(texts)} documents compared", "assistant", metadata={"comparison": compare(texts)})


class ReportWriter(AgentBase):
    """Writes the report of all reviews."""

    def __init__(self, name: str, title: str, notices: list[Notice]) -> None:
        self.name = name
        self.title = title
        self.notices = notices

    def reply(self, msgs: list[Msg]) -> Msg:
        """The report as Markdown."""
        reviews = [cast(DocumentReview, msg.metadata["review"]) for msg in msgs if "review" in msg.metadata]
        comparison = next((msg.metadata["comparison"] for msg in msgs if "comparison" in msg.metadata), None)
        return Msg(self.name, render_report(reviews, cast(Any, comparison), title=self.title, notices=self.notices),
                   "assistant")


SUMMARY = "Summarize the document in 4 sentences."
CRITIQUE = "Criticise the document: name its 3 weakest points, as bullets."
QUESTIONS = "List the 3 questions that a careful reader would ask about the document."


def reader(name: str, task: str, model_name: str) -> Reader:
    """A Reader with a streaming model of that name."""
    return Reader(name, task, OpenAIChatModel(model_name))
