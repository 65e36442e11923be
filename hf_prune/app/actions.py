"""What happens when a visitor presses something: forms to recipes, recipes to runs, runs to what is shown."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from hf_prune import hub
from hf_prune.app import charts, plans, progress, results
from hf_prune.app.downloads import link
from hf_prune.app.forms import LABELS, Form, in_words_of_the_page, recipe_of, repos
from hf_prune.app.markup import note
from hf_prune.app.runs import LOCAL, Run, Runs, owner_of, public
from hf_prune.app.workers import ask
from hf_prune.errors import HfPruneError, InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.recipe import Recipe
from hf_prune.report.schema.scores import total

Profile = gr.OAuthProfile | None
Token = gr.OAuthToken | None
FIRST_METHOD = next(iter(METHODS))
HIDDEN = gr.update(visible=False)
ENDED = ("done", "failed", "stopped")


@dataclass(frozen=True)
class Actions:
    """Answers of the app.

    Args:
        runs: where runs live.
        space: name of the Space that serves strangers; None for the person at this machine, with its login.
    """

    runs: Runs
    space: str | None = None

    @property
    def strangers(self) -> bool:
        """Whether visitors are not the person at this machine."""
        return self.space is not None

    # Model and size -------------------------------------------------------------------------------------------------

    def find(self, words: str) -> Any:
        """Repos of the Hub whose names match, as choices of the picker."""
        with _in_words():
            found = hub.search(words)
        if not found:
            said = f"No model for text has {words.strip()[:80]!r} in its name; try other words."
            raise gr.Error(said, print_exception=False)
        return gr.update(choices=repos(found), value=found[0])

    def look(self, token: Token, *fields: Any) -> list[Any]:
        """The plan on both pages; on to the second one when there is nothing against it."""
        shown, *elsewhere, good = self._planned(fields, token)
        return [shown, shown, *elsewhere, gr.Tabs(selected="size") if good else gr.skip()]

    def replan(self, token: Token, *fields: Any) -> list[Any]:
        """The plan again."""
        return self._planned(fields, token)[:-1]

    def _planned(self, fields: tuple[Any, ...], token: Token) -> list[Any]:
        try:
            recipe = recipe_of(Form(*fields), self.strangers)
            found = self._as(token, plans.planned, recipe, self.strangers)
        except HfPruneError as e:
            return [self._refusal(e), *[""] * (3 if self.space else 2), False]
        job = [plans.job_command(recipe, found.plan, self.space)] if self.space else []
        return [plans.html(found), plans.command(recipe), plans.recipe_yaml(recipe), *job, True]

    def job(self, token: Token, name: str, *fields: Any) -> str:
        """The run as a job of the Hub, on the visitor's account; its hf_prune is this Space's."""
        try:
            if not token:
                raise InvalidRecipe("Sign in above first; the job runs on your account and is paid by it.")
            recipe = recipe_of(Form(*fields), self.strangers)
            return _link("Started", self._as(token, plans.job, recipe, str(self.space), name))
        except HfPruneError as e:
            return self._refusal(e)

    # Runs -----------------------------------------------------------------------------------------------------------

    def arrive(self, visitor: str, request: gr.Request, profile: Profile = None) -> list[Any]:
        """A page is opened: the run it names, or the visitor's latest one that has not ended, is shown as it is."""
        visitor = visitor or secrets.token_hex(16)
        owner = self._owner(visitor, profile)
        run = self._named(str(request.query_params.get("run", "")), owner)
        run = run or next((r for r in self.runs.of(owner) if self.runs.state(r) in ("queued", "running")), None)
        run = run or next((r for r in self.runs.of(owner) if self.runs.state(r) in ENDED), None)
        if not run:
            return [visitor, "", gr.skip(), *[gr.skip()] * 7]
        done = self.runs.state(run) == "done"
        at = (
            gr.skip()
            if done and not request.query_params.get("run")
            else gr.Tabs(selected="compare" if done else "run")
        )
        return [visitor, run.id, at, *self._live(run)]

    def mine(self, visitor: str, profile: Profile = None) -> str:
        """This visitor's runs, the latest first, each with a link that opens it."""
        return results.listed([(run, str(self.runs.state(run))) for run in self.runs.of(self._owner(visitor, profile))])

    def start(self, profile: Profile, token: Token, visitor: str, *fields: Any) -> list[Any]:
        """Queue what the form asks for and show it."""
        try:
            recipe = recipe_of(Form(*fields), self.strangers)
            found = self._as(token, plans.planned, recipe, self.strangers)
            if found.too_small:
                raise InvalidRecipe(found.too_small)
            run = self.runs.begin(recipe, self._owner(visitor, profile), token.token if token else None)
        except HfPruneError as e:
            refused = self._refusal(e)
            return ["", gr.Tabs(selected="run"), "", gr.Timer(active=False), refused, "", "", HIDDEN, HIDDEN]
        return [run.id, gr.Tabs(selected="run"), *self._live(run)]

    def tick(self, visitor: str, id: str, seen: str, profile: Profile = None) -> list[Any]:
        """What has changed of a run since `seen`."""
        run = self._named(id, self._owner(visitor, profile))
        if not run:
            return [gr.skip(), gr.Timer(active=False), *[gr.skip()] * 5]
        return self._live(run, seen)

    def stop(self, visitor: str, id: str, profile: Profile = None) -> list[Any]:
        """Stop a run, or take it out of the queue."""
        if run := self._named(id, self._owner(visitor, profile)):
            self.runs.cancel(run)
            return self._live(run)
        return [gr.skip()] * 7

    def again(self, visitor: str, id: str, profile: Profile = None, token: Token = None) -> list[Any]:
        """Go on with a run that was stopped or failed."""
        owner = self._owner(visitor, profile)
        run = self._named(id, owner)
        if not run:
            return [gr.skip()] * 7
        try:
            self.runs.begin(run.recipe, owner, token.token if token else None)
        except HfPruneError as e:
            return [gr.skip(), gr.skip(), self._refusal(e), *[gr.skip()] * 4]
        return self._live(run)

    def _live(self, run: Run, seen: str = "") -> list[Any]:
        """Mark of what was seen, timer, status, chart, strip, stop and go on."""
        state = self.runs.state(run)
        found = progress.Progress.of(run.events())
        mark = f"{run.id} {state} {found.count}"
        at_work = state in ("queued", "running")
        active = gr.Timer(active=at_work)
        if mark == seen:
            return [gr.skip(), active, *[gr.skip()] * 5]
        recipe, stopped = run.recipe, gr.update(visible=state in ("stopped", "failed"))
        words = progress.html(found, state, self.runs.ahead(run), time.time())
        strip = results.layers(run.report()) if state == "done" else progress.layers(found, recipe)
        drawn = charts.drawn(found, recipe), strip
        return [mark, active, words, *drawn, gr.update(visible=at_work), stopped]

    # Results --------------------------------------------------------------------------------------------------------

    def results(self, visitor: str, id: str, profile: Profile = None) -> list[Any]:
        """Comparison and card of a finished run: numbers, front, members, talk, pictures, files, place, box, card."""
        run = self._named(id, self._owner(visitor, profile))
        if not run or self.runs.state(run) != "done":
            return [gr.skip()] * 10
        report = run.report()
        front = results.front(run.result)
        place = _link("Published", run.url) if run.url else gr.skip()
        shown, card = gr.update(visible=True), gr.update(value=results.card(run.result), visible=True)
        points = gr.update(visible=bool(front)), charts.front(front, report.objective)
        kept = results.files(run, link(run), self.strangers)
        return [results.html(report), *points, shown, shown, results.pictures(run.result), kept, place, shown, card]

    def member(self, visitor: str, id: str, point: gr.SelectData, profile: Profile = None) -> str:
        """A model of the front: its layers and numbers."""
        run = self._named(id, self._owner(visitor, profile))
        if not run:
            return ""
        try:
            return results.member(run.report(), results.front(run.result), point.index)
        except HfPruneError as e:
            return self._refusal(e)

    def ask(self, visitor: str, id: str, prompt: str, profile: Profile = None) -> str:
        """What both models say."""
        run = self._named(id, self._owner(visitor, profile))
        if not run:
            return note("There is no finished run to talk to.", "bad")
        try:
            return f"<div class='says'>{results.said(run, prompt)}</div>"
        except HfPruneError as e:
            return self._refusal(e)

    def earlier(self, token: Token, repo: str) -> str:
        """The page of a result on the Hub."""
        try:
            return self._as(token, results.earlier, repo, self.strangers)
        except HfPruneError as e:
            return self._refusal(e)

    def publish(
        self, visitor: str, id: str, name: str, private: bool, profile: Profile = None, token: Token = None
    ) -> str:
        """Push the finished folder to the visitor's account."""
        run = self._named(id, self._owner(visitor, profile))
        if not run or self.runs.state(run) != "done":
            return note("There is no finished run to publish.", "bad")
        if self.strangers and not token:
            return note("Sign in above to publish; the repo is made in your account, with your login.", "warn")
        if not name.strip():
            return note(f"Write a name into the field {LABELS['push_to']} first, like me/small.", "bad")
        try:
            done = self._as(token, results.pushed, str(run.result), name, private)
        except HfPruneError as e:
            return self._refusal(e)
        (run.folder / "published").write_text(done, encoding="utf-8")
        return _link("Published", done)

    # For programs ---------------------------------------------------------------------------------------------------

    def plan(self, base: str, method: str = FIRST_METHOD, ratio: float = 0.25) -> dict:
        """Say what compressing a model would do and need: sizes, memory, disk, evaluations. Nothing is downloaded.

        Args:
            base: repo of the Hub, namespace/name.
            method: as `hf-prune compress --method` knows them, such as collapse, halves or width.
            ratio: share of the parameters to remove, 0 to 1.
        """
        with _in_words():
            return plans.summary(self._tool(base, method, ratio), self.strangers)

    def compress(self, base: str, method: str = FIRST_METHOD, ratio: float = 0.25) -> dict:
        """Compress a model: starts a run, or tells how far the same request is. Ask again until state is done.

        Args:
            base: repo of the Hub, namespace/name.
            method: as `hf-prune compress --method` knows them, such as collapse, halves or width.
            ratio: share of the parameters to remove, 0 to 1.
        """
        with _in_words():
            recipe = self._tool(base, method, ratio)
            owner = LOCAL if not self.strangers else owner_of("tools")
            if (found := plans.planned(recipe, self.strangers)).too_small:
                raise InvalidRecipe(found.too_small)
            run = self.runs.begin(recipe, owner)
            state = self.runs.state(run)
            told = progress.Progress.of(run.events())
            more = {"report": total(run.report().text).to_dict()} if state == "done" else {}
            return {"run": run.id, "state": state, "stage": told.stage, "message": told.message, **more}

    def _tool(self, base: str, method: str, ratio: float) -> Recipe:
        named = METHODS[method].title if method in METHODS else method
        return recipe_of(Form(base, method=named, size=100 * ratio), self.strangers)

    # Who asks -------------------------------------------------------------------------------------------------------

    def _owner(self, visitor: str, profile: Profile) -> str:
        if not self.strangers:
            return LOCAL
        return owner_of(f"user {profile.username}" if profile else f"visitor {visitor}")

    def _named(self, id: str, owner: str) -> Run | None:
        try:
            return self.runs.find(id, owner) if id else None
        except InvalidRecipe:
            return None

    def _refusal(self, error: HfPruneError) -> str:
        """What went wrong; a visitor signs in on the page, not in a terminal."""
        text = in_words_of_the_page(str(error))
        return note(public(text.replace(hub.LOGIN, "sign in above")) if self.strangers else text, "bad")

    def _as(self, token: Token, function: Any, *args: Any) -> Any:
        """With the visitor's login in a process of its own, else here."""
        return ask(function, *args, login=token.token) if token else function(*args)


@contextmanager
def _in_words() -> Iterator[None]:
    """What goes wrong as gradio tells it to programs; of other errors it would say nothing."""
    try:
        yield
    except HfPruneError as e:
        raise gr.Error(public(str(e)), print_exception=False) from None
    except Exception as e:
        raise gr.Error(public(f"{type(e).__name__}: {e}"), print_exception=False) from e


def _link(word: str, url: str) -> str:
    address = escape(url)
    link = f"<a href='{address}' target='_blank' rel='noopener'>{address}</a>" if url.startswith("http") else address
    return f"<div class='note good' role='status'>{word}: {link}</div>"
