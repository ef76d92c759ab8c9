"""A local page that shows cases: image, reference and prediction, the worst first. Reads files, writes none."""
