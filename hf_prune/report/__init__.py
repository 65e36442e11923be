"""What a result can do, told: measurements, tables, figures, the card."""

from hf_prune.report.schema.report import Report


def _page(report: Report) -> str:
    from hf_prune.report.notebook import report_html

    return report_html(report)


# Here, since what draws a report imports it.
Report._repr_html_ = _page
