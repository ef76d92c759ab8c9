"""Other tools' files: nnU-Net's."""
