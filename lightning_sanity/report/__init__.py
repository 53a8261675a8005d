"""Figures, the HTML report and what goes to the user's loggers."""
