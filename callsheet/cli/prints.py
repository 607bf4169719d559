"""`callsheet run --stream`: what the agents print, as it comes."""


from callsheet.agents.console import print_to_console
from callsheet.cli.progress import Display
from callsheet.cli.terminal import say
from callsheet.errors import JobError
from callsheet.tasks.events import Event
from callsheet.tasks.jobs import Job


class Prints:
    """Shows what the agents of a run's jobs print.

    Args:
        display: of the run's progress.
        alone: whether there is one input: then messages are shown as they grow. Of several, whole ones are.
    """

    def __init__(self, display: Display, alone: bool) -> None:
        self._display, self._alone = display, alone

    async def follow(self, source: str, job: Job) -> None:
        """Show what the agents of an input's job print, until it ends."""
        try:
            async for event in job.stream():
                self._show(source, job, event)
        except JobError:
            return  # told with its result

    def _show(self, source: str, job: Job, event: Event) -> None:
        if event.again:
            self._display.say(f"{source}: {event.agent} begins anew; what it had not finished is void.")
        if event.question is not None:
            self._display.say(f"{source}: {event.agent} asks: {event.question.prompt}\n"
                              f"  To answer: callsheet answer {job.id} TEXT")
        elif self._alone:
            print_to_console(event.msg, event.last)
        elif event.last:
            say(f"{source}: {event.msg.name}: {event.msg.get_text_content() or '(no text)'}")
