"""Random changes of training patches: drawn on the CPU, applied on the images' device."""
