"""Pictures and tables from run directories."""

from st3.report.run_picture import draw_run

__all__ = ["draw_run"]
