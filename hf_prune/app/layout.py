"""The layout of the app, and which handler answers which button."""

import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_prune.app import charts, forms, style, workers
from hf_prune.app.actions import Actions
from hf_prune.app.downloads import WithDownloads
from hf_prune.app.forms import LABELS
from hf_prune.app.runs import Limits, Runs
from hf_prune.app.startup import quick, unserved
from hf_prune.hub import forget_login

HERO = """<div class="hero"><h1>hf_prune</h1>
<p>From a model on the Hub to a smaller one that is measured and published.</p></div>"""
UPLOADS = ("upload", "upload_progress", "process_recording")
"""Where gradio takes files."""
SAID = {"common.complete": "complete"}
"""What gradio reads out to those who do not see the page, and has no words for."""
PRIVATE: Any = {"api_visibility": "private"}
"""Buttons are for people; programs have the two tools."""


def open_here(
    home: Path,
    port: int | None = None,
    limits: Limits | None = None,
    browser: bool = False,
    wait: bool = True,
    tell: Callable[[str], None] = lambda address: None,
) -> str:
    """Serve the app, to one person with the login of this machine, or as a Space to strangers.

    Args:
        home: folder of the runs.
        port: where to listen; a free one by default.
        limits: what a visitor may take.
        browser: open a window.
        wait: until it is interrupted; else serve from a thread.
        tell: is called with the address as soon as somebody answers there.

    Returns:
        The address.
    """
    space = gr.utils.get_space()
    if space:
        # The login of the Space's owner is not for its visitors.
        forget_login()
    # fastapi ignores it where it makes validators; here some are made later.
    warnings.filterwarnings("ignore", "The 'alias' attribute with value")
    with quick():
        with unserved(gr.routes.App):
            demo = build(Actions(Runs(home, limits), space))
            demo.queue(default_concurrency_limit=8, max_size=100)
        layers = [Middleware(WithoutUploads), Middleware(WithDownloads, home)]
        _, address, _ = demo.launch(
            server_port=port, inbrowser=browser, prevent_thread_lock=True, theme=style.theme(), css=style.CSS,
            mcp_server=True, quiet=True, ssr_mode=False, footer_links=["gradio", "settings", "api"],
            server_name="0.0.0.0" if space else "127.0.0.1", app_kwargs={"middleware": layers},
            i18n=gr.I18n(en=SAID),
        )  # fmt: skip
    tell(address)
    # Not sooner: loading torch beside gradio makes the first page late.
    workers.warm()
    if wait:
        demo.block_thread()
    return address


@dataclass(frozen=True)
class WithoutUploads:
    """A server that takes no files: no form asks for any, so nobody need be able to fill this disk with them."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as if there were no such place."""
        last = str(scope.get("path", "")).rstrip("/").rpartition("/")[2]
        closed = Response("Not Found", 404) if scope["type"] == "http" and last in UPLOADS else self.app
        await closed(scope, receive, send)


def build(do: Actions) -> gr.Blocks:
    """The whole app."""
    with gr.Blocks(title="hf_prune", analytics_enabled=False) as demo:
        # Not a secret: it only tells one browser's runs from another's, and has to outlive the server.
        visitor = gr.BrowserState("", storage_key="hf_prune_visitor", secret="hf_prune")
        run, seen, timer = gr.State(""), gr.State(""), gr.Timer(1.5, active=False)
        with gr.Row(elem_classes="top"):
            gr.HTML(HERO)
            if do.strangers:
                # gradio's own icon would show visitors where the server keeps its packages.
                gr.LoginButton(icon=None, scale=0, min_width=230, size="sm", elem_id="login")
        with gr.Tabs(selected="model", overflow_behavior="wrap", elem_id="steps") as tabs:
            with gr.Tab("1 Model", id="model") as first:
                base, variants, look, looked = _model(do)
            with gr.Tab("2 Size", id="size"):
                choices, replan, planned, elsewhere, start = _size()
                job = _job() if do.space else ()
            with gr.Tab("3 Run", id="run"):
                shown = _run()
                mine = gr.HTML(elem_id="mine")
            with gr.Tab("4 Compare", id="compare"):
                compared = _compare(do, visitor, run)
            with gr.Tab("5 Publish", id="publish"):
                published = _publish(do, visitor, run)
        form = [base, variants, *choices]
        elsewhere += job[:1]
        live = [seen, timer, *shown]
        with first:
            _examples(do, visitor, form, [run, tabs, *live])
        look.click(do.look, form, [looked, planned, *elsewhere, tabs], **PRIVATE)
        replan.click(do.replan, form, [planned, *elsewhere], **PRIVATE)
        start.click(do.start, [visitor, *form], [run, tabs, *live], **PRIVATE)
        if job:
            _, place, button, started = job
            button.click(do.job, [place, *form], [started], **PRIVATE)
        timer.tick(do.tick, [visitor, run, seen], live, show_progress="hidden", **PRIVATE)
        stop, again = shown[-2:]
        stop.click(do.stop, [visitor, run], live, **PRIVATE)
        again.click(do.again, [visitor, run], live, **PRIVATE)
        for trigger in (demo.load(do.arrive, [visitor], [visitor, run, tabs, *live], **PRIVATE), run.change):
            (trigger.then if hasattr(trigger, "then") else trigger)(
                do.results, [visitor, run], [*compared, *published], show_progress="hidden", **PRIVATE
            )
        gr.on([demo.load, seen.change], do.mine, [visitor], [mine], show_progress="hidden", **PRIVATE)
        seen.change(do.results, [visitor, run], [*compared, *published], show_progress="hidden", **PRIVATE)
        gr.api(do.plan, api_name="plan")
        gr.api(do.compress, api_name="compress")
    for function in demo.fns.values():
        if function.name == "_check_login_status":
            # The login button's own, which programs have no use for.
            function.api_visibility = "private"
    return demo


def _model(do: Actions) -> tuple[Any, ...]:
    gr.Markdown("Which model should become smaller? Nothing is downloaded yet.")
    with gr.Row():
        base = gr.Dropdown(
            forms.repos([]), value=forms.DEMO, label=LABELS["base"], allow_custom_value=True, scale=3, min_width=260,
            info="Pick one, or write namespace/name of a repo.", elem_id="base",
        )  # fmt: skip
        words = gr.Textbox(label="Search the Hub", placeholder="e.g. smollm", scale=2, min_width=220,
                           info="Enter looks it up.")  # fmt: skip
    words.submit(do.find, [words], [base], **PRIVATE)
    with gr.Accordion("Fine-tuned variants, for stitching", open=False):
        variants = gr.Textbox(
            value="", label=LABELS["variants"], lines=3, placeholder="one repo or LoRA adapter a line",
            elem_id="variants",
            info="Full models of the same shape, or PEFT adapters. For the demo: demo: plays, demo: code, demo: qa.",
        )  # fmt: skip
    look = gr.Button("Look at it", variant="primary", elem_id="look")
    return base, variants, look, gr.HTML(elem_id="looked")


def _size() -> tuple[Any, ...]:
    method = gr.Radio(list(forms.TITLES), value=next(iter(forms.TITLES)), label=LABELS["method"], elem_id="method")
    size = gr.Slider(5, 70, value=25, step=1, label=LABELS["ratio"], elem_id="size")
    with gr.Accordion("More", open=False, elem_id="more"):
        front = gr.Checkbox(False, label=LABELS["search"], elem_id="front")
        repair = gr.Checkbox(True, label=LABELS["repair"], elem_id="repair")
        tune = gr.Checkbox(True, label=LABELS["tune"], elem_id="tune")
        heal = gr.Dropdown(["0", "250k", "1M", "5M"], value="0", label=LABELS["heal"])
        trials = gr.Number(0, label=LABELS["evaluations"], precision=0, minimum=0, elem_id="trials")
        seed = gr.Number(0, label=LABELS["seed"], precision=0, minimum=0, elem_id="seed")
        evidence = _evidence()
    with gr.Row():
        replan = gr.Button("What would happen?", elem_id="replan")
        start = gr.Button("Start", variant="primary", elem_id="start")
    planned = gr.HTML(elem_id="planned")
    with gr.Accordion("Run it elsewhere", open=False):
        command = gr.Code(label="Command", language="shell", interactive=False)
        file = gr.Code(label="recipe.yaml", language="yaml", interactive=False)
    choices = [method, size, front, repair, tune, heal, trials, seed, *evidence]
    return choices, replan, planned, [command, file], start


def _evidence() -> list[Any]:
    """What is judged by, how finely, and in how much time and memory."""
    with gr.Row():
        data = gr.Textbox(
            "", label=LABELS["data"], lines=2, placeholder="one a line: Salesforce/wikitext:wikitext-2-raw-v1, or self",
            info="Empty: what the model says itself, Wikipedia, mathematics and Python.", elem_id="data",
        )  # fmt: skip
        tasks = gr.Textbox(
            "", label=LABELS["tasks"], lines=2, placeholder="one a line: allenai/ai2_arc:ARC-Easy", elem_id="tasks",
            info="Empty: ARC-Easy, OpenBookQA and PIQA.",
        )  # fmt: skip
    with gr.Row():
        objective = gr.Dropdown(list(forms.OBJECTIVES), value="kl", label=LABELS["objective"], elem_id="objective")
        time = gr.Textbox("", label=LABELS["time"], placeholder="30m or 2h; empty: about ten minutes", elem_id="time")
    with gr.Row():
        dtype = gr.Dropdown(list(forms.PRECISIONS), value="auto", label=LABELS["dtype"], elem_id="dtype")
        length = gr.Dropdown(list(forms.LENGTHS), value="256", label=LABELS["length"], elem_id="length")
        windows = gr.Dropdown(list(forms.WINDOWS), value="16", label=LABELS["sequences"], elem_id="windows")
    return [data, tasks, objective, time, dtype, length, windows]


def _job() -> tuple[Any, ...]:
    with gr.Accordion("Run it as a job on your account", open=False):
        with gr.Row():
            place = gr.Textbox(label="Repo for the result", placeholder="me/small", scale=3, elem_id="job-name")
            button = gr.Button("Start the job", scale=1, elem_id="job")
        started = gr.HTML(elem_id="job-started")
        command = gr.Code(label="Or start it from a terminal", language="shell", interactive=False)
    return command, place, button, started


def _run() -> list[Any]:
    status = gr.HTML("<p>No run yet: choose a model and a size first.</p>", elem_id="status")
    chart = gr.HTML(elem_id="chart")
    strip = gr.HTML(elem_id="strip")
    with gr.Row():
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        again = gr.Button("Go on", variant="primary", visible=False, elem_id="again")
    return [status, chart, strip, stop, again]


def _compare(do: Actions, visitor: Any, run: Any) -> list[Any]:
    numbers = gr.HTML("<p>A finished run is shown here.</p>", elem_id="numbers")
    kept = gr.HTML(elem_id="kept")
    with gr.Column(visible=False) as front:
        gr.Markdown("Every model of the front: click one.")
        members = gr.HTML(js_on_load=charts.CLICK, elem_id="members")
        about = gr.HTML(elem_id="about")
    with gr.Group(visible=False) as talk:
        prompt = gr.Textbox(
            label="Let both continue a text", value="once upon a time", elem_id="prompt", max_length=400
        )
        ask = gr.Button("Ask both", elem_id="ask")
        said = gr.HTML(elem_id="said")
    with gr.Accordion("Pictures", open=False, visible=False) as more:
        pictures = gr.HTML(elem_id="pictures")
    with gr.Accordion("Show an earlier result", open=False):
        what = "Repo that hf_prune published" + ("" if do.strangers else ", or a folder that it wrote here")
        earlier = gr.Textbox(label=what, placeholder="namespace/name; Enter shows it", elem_id="earlier")
        shown = gr.HTML()
    ask.click(do.ask, [visitor, run, prompt], [said], **PRIVATE)
    members.select(do.member, [visitor, run], [about], **PRIVATE)
    earlier.submit(do.earlier, [earlier], [shown], **PRIVATE)
    return [numbers, front, members, talk, more, pictures, kept]


def _publish(do: Actions, visitor: Any, run: Any) -> list[Any]:
    state = gr.HTML(
        "<p>A finished run can be published here; nothing is created before you say so.</p>", elem_id="place"
    )
    with gr.Group(visible=False) as box:
        with gr.Row():
            name = gr.Textbox(label=LABELS["push_to"], placeholder="me/small", elem_id="name", scale=3)
            private = gr.Checkbox(True, label="Private", scale=1)
        push = gr.Button("Publish", variant="primary", elem_id="push")
    card = gr.Markdown(elem_id="card", visible=False)
    push.click(do.publish, [visitor, run, name, private], [state], **PRIVATE)
    return [state, box, card]


def _examples(do: Actions, visitor: Any, form: list[Any], started: list[Any]) -> None:
    gr.Markdown("Or watch one of these; a click starts it:", elem_id="examples-said")
    with gr.Row(elem_id="examples"):
        for name, filled in forms.examples().items():
            button = gr.Button(name, size="sm", min_width=150)
            button.click(lambda filled=filled: list(astuple(filled)), None, form, **PRIVATE).then(
                do.start, [visitor, *form], started, **PRIVATE
            )
