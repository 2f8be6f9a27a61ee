"""A model at a layout with its optimizer, and one pass of rows through it."""
