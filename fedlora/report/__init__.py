"""What users see of a run: its folder, progress, tables, plots and report page."""
