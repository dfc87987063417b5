"""The build report: one HTML file that needs nothing else."""

from edgeship.build.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
