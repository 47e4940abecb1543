"""What did the run find, in tables and plots that one person can read and another can check?

`rows` aggregates `results/<method>-<seed>.json` over seeds; `write_report` puts the rows into `table.json`, `table.md` and one
HTML page that needs nothing from outside. Every sentence on the page is computed from the numbers and says no more than they.
"""

from mcdi.report.page import write_report
from mcdi.report.table import Row, Score, markdown, rich_table, rows

__all__ = ["Row", "Score", "markdown", "rich_table", "rows", "write_report"]
