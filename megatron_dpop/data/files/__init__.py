"""Files of rows, whatever their format: found, opened and read row by row."""
