"""segpipe: from a folder of labelled scans to a model whose worth you can defend."""

import os

__version__ = "0.1.0"

# Threads that wait for each other sleep instead of spinning. Beside another busy process spinning made a training step
# up to a hundred times slower, since each of its thousands of small parallel loops lost a time slice. Read by OpenMP
# when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
