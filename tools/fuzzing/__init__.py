"""Damaged, contradictory and hostile inputs, made from good ones by chance, and what a command may answer to them."""
