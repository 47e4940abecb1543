"""Reports of runs: tables and plots that one person can read and another can check.

`results.rows` aggregates `results/<method>-<seed>.json` over seeds; `page.write_report` writes them to `table.json`, `table.md`
and one HTML page that needs nothing from outside; `compare.write_comparison` puts several runs on such a page. Every sentence
on a page is computed from the numbers.
"""
