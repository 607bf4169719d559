"""An agent that writes a letter, and a person who approves it. Without a key: the model follows a script.

    python -m examples.approval                     # in this process
    python -m examples.approval --workers           # on the workers of `callsheet up --modules examples`

On workers the job waits without a slot, for days if need be, also if this program or the worker ends meanwhile: then
`callsheet answer` lists what it asks, and answers it. For a real model, put `OpenAIChatModel("gpt-4o-mini")` in place
of the script, and set OPENAI_API_KEY.
"""

import argparse

import callsheet
from callsheet import AgentBase, Msg, UserAgent
from callsheet.formatters import OpenAIChatFormatter
from callsheet.models import ChatResponse
from callsheet.testing import ScriptedModel

DRAFTS = ["Dear Ann, come to dinner.", "Dear Ann, would you like to come to dinner on Friday?"]
TASK = Msg("user", "Invite Ann to dinner.", "user")


class Clerk(AgentBase):
    """Writes a letter again and again until a person says yes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = ScriptedModel(DRAFTS, stream=True, then="cycle", ident="drafts")
        self.formatter = OpenAIChatFormatter()
        self.editor = UserAgent("editor")

    async def reply(self, task: Msg) -> Msg:
        """The letter that was approved."""
        said = [task]
        while True:
            draft = Msg(self.name, "", "assistant")
            answer = await self.model(await self.formatter.format(said))
            assert not isinstance(answer, ChatResponse)  # the model streams
            async for chunk in answer:
                draft.content = [*chunk.content]
                await self.print(draft, last=False)
            await self.print(draft)
            verdict = await self.editor.reply(draft)
            if verdict.get_text_content() == "yes":
                return draft
            said += [draft, verdict]


def on_workers() -> Msg:
    """Submit it, show what is printed, and answer what is asked."""
    job = Clerk("clerk").submit(TASK)
    for event in job.stream():
        if event.question:
            job.answer(input("yes, or what to change: "))
        elif event.last:
            print(f"{event.msg.name}: {event.msg.get_text_content()}")
    letter: Msg = job.get()
    return letter


def here() -> Msg:
    """The same in this process, where a UserAgent asks at the terminal."""
    with callsheet.inline():
        letter: Msg = Clerk("clerk").submit(TASK).get()
        return letter


def main() -> None:
    """Have a letter written."""
    parser = argparse.ArgumentParser(description="A letter with a person in the loop.")
    parser.add_argument("--workers", action="store_true", help="run on workers (CALLSHEET_MODULES=examples)")
    letter = on_workers() if parser.parse_args().workers else here()
    print(f"Sent: {letter.get_text_content()}")


if __name__ == "__main__":
    # Workers find the agent by the name of this module, which is "__main__" here.
    from examples import approval  # noqa: PLW0406 - the same file, by its name

    approval.main()
