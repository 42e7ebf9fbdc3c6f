"""Figures, drawn predictions, and the page that shows a run."""
