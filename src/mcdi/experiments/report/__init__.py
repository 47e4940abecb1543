"""Reports of runs: tables and plots that one person can read and another can check.

`rows` aggregates `results/<method>-<seed>.json` over seeds; `write_report` puts the rows into `table.json`, `table.md` and one
HTML page that needs nothing from outside; `write_comparison` puts several runs side by side on such a page. Every sentence on
a page is computed from the numbers and says no more than they.
"""

from mcdi.experiments.report.compare import rich_comparison, write_comparison
from mcdi.experiments.report.page import write_report
from mcdi.experiments.report.results import Row, Score, rows
from mcdi.experiments.report.runs import read_runs
from mcdi.experiments.report.table import markdown, rich_table

__all__ = [
    "Row",
    "Score",
    "markdown",
    "read_runs",
    "rich_comparison",
    "rich_table",
    "rows",
    "write_comparison",
    "write_report",
]
