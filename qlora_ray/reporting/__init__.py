"""The report of a sweep: one self-contained HTML page and the same as Markdown, from what the folder holds.

`story` reads the folder into types, the `figures_*` draw, and `writing` puts the sections together and writes them by
`qlora_ray.pages`. Importing this package loads neither plotly nor optuna.
"""

from qlora_ray.reporting.writing import Written, write_report, write_reports

__all__ = ["Written", "write_report", "write_reports"]
