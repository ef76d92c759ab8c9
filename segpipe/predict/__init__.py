"""From images and weights to masks on the images' own grids."""
