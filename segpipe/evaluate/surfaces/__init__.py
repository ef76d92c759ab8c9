"""The surface engine: two label maps to distances between surfaces, and the metrics of distances.

`indexed_maps`: two maps as indices, counted and boxed in one pass. `distances`: what a surface is, how far two of them
are apart, and HD95, ASSD and the like; this is the file to read. It calls compiled loops: `packed_masks` (masks and
surfaces with one bit for each voxel or cell, and the area of the surface in each of the 256 kinds of cell) and
`distance_loops` (the nearest element, a weighted percentile).
"""
