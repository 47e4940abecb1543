"""Reports of runs: tables and plots that one person can read and another can check. Every sentence on a page is computed
from the numbers."""
