"""One theme, light and dark; colours of Okabe and Ito, "Color Universal Design" (2008)."""

from typing import Any

CSS = """
.gradio-container {max-width: 1080px !important; width: 100% !important; margin: 0 auto !important}
.gradio-container main, .gradio-container .contain {width: 100% !important}
.top {align-items: center}
#login {max-height: 44px}
.hero h1 {margin: 0; font-size: 1.9rem; letter-spacing: -.02em}
.hero p {margin: .15rem 0 0; color: var(--body-text-color-subdued); font-size: 1.02rem}
.wide {overflow-x: auto; margin: .5rem 0}
.wide table {border-collapse: collapse; width: 100%; font-size: .92rem}
.wide th, .wide td {text-align: left; padding: .38rem .7rem; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.wide table, .wide tr {border: 0 !important}
.wide th {color: var(--body-text-color-subdued); font-weight: 600}
.wide.numbers td:not(:first-child), .wide.numbers th:not(:first-child) {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
.note {border-left: 4px solid #767676; background: var(--background-fill-secondary); border-radius: 4px;
  padding: .6rem .85rem; margin: .5rem 0}
.note.good {border-color: #009E73} .note.warn {border-color: #E69F00} .note.bad {border-color: #D55E00}
.note a {text-decoration: underline}
.bar {height: 10px; border-radius: 5px; background: var(--border-color-primary); overflow: hidden; margin: .5rem 0}
.bar i {display: block; height: 100%; background: #0072B2; transition: width .4s}
.quiet {color: var(--body-text-color-subdued)}
.strip {margin: .6rem 0}
.strip .boxes {display: flex; flex-wrap: wrap; gap: 4px}
.strip b, .strip i {border: 1px solid #222; color: #222; font-style: normal}
.strip b {flex: 1 1 34px; max-width: 62px; height: 42px; border-radius: 4px; display: grid; place-items: center;
  font-size: .85rem; transition: background .4s}
.strip i {display: inline-block; width: .85em; height: .85em; border-radius: 2px; margin: 0 .3em 0 .8em;
  vertical-align: -1px}
.strip .kept {background: #56B4E9} .strip .merged {background: #E69F00} .strip .narrowed {background: #CC79A7}
.strip .half {background: #009E73}
.strip .removed {background: transparent; border: 1.5px dashed #767676; color: #767676}
.strip figcaption {margin-top: .4rem; color: var(--body-text-color-subdued); font-size: .9rem}
.front {width: 100%; font-size: 14px; fill: var(--body-text-color)}
.front path {stroke: var(--border-color-primary)}
.front circle {fill: #0072B2; stroke: var(--background-fill-primary); stroke-width: 1.5; cursor: pointer}
.front circle.knee {fill: #D55E00}
.front circle:hover, .front circle:focus {stroke: var(--body-text-color); stroke-width: 2.5; outline: none}
.pictures {display: grid; gap: 1rem}
.picture img {width: 100%; background: #fff; border-radius: 6px; border: 1px solid var(--border-color-primary)}
.picture figcaption {color: var(--body-text-color-subdued); font-size: .9rem}
.says {display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 1rem}
.said {border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .6rem .9rem}
.said h4 {margin: 0 0 .3rem} .said p {white-space: pre-wrap; overflow-wrap: anywhere; margin: 0}
#card th, #card td {border-color: var(--border-color-primary) !important}
.file {font-weight: 600}
details > summary {cursor: pointer; color: var(--body-text-color-subdued)}
#card img {max-width: 100%; background: #fff; border-radius: 6px}
@media (max-width: 480px) {
  .wide th, .wide td {padding: .3rem .3rem; font-size: .8rem}
  .wide.numbers td:not(:first-child), .wide.numbers th:not(:first-child) {white-space: normal}
  #card table {display: table; table-layout: fixed; width: 100%; font-size: .72rem}
  #card th, #card td {padding: .25rem .2rem !important; overflow-wrap: anywhere}
  .strip b {flex-basis: 30px; height: 36px}
  .hero h1 {font-size: 1.5rem}
  .top {flex-direction: column; align-items: stretch}
  #steps button[role=tab] {padding: 0 .42rem; font-size: .86rem}
}
"""


def theme() -> Any:
    """Gradio's soft theme in the colours of the figures."""
    import gradio as gr

    blue = gr.themes.Color("#e8f3fa", "#cfe6f4", "#a9d2ea", "#7cbbe0", "#56B4E9", "#1f87c4", "#0072B2", "#005f96",
                           "#004c78", "#003a5c", "#002842")  # fmt: skip
    return gr.themes.Soft(primary_hue=blue, neutral_hue="gray", font=["system-ui", "sans-serif"],
                          font_mono=["ui-monospace", "monospace"])  # fmt: skip
