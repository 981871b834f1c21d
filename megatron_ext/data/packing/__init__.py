"""A finished dataset -> a dataset of blocks: the packing rules, one file each, and what writes their blocks."""
