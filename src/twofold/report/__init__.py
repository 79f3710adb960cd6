"""Figures and the page of a run, from plain data: log rows, uint8 images, dictionaries of metrics."""
