"""Run nnunetv2's own trainer on one fold for a given number of minutes: the baseline that segpipe is compared with.

    python benchmarks/nnunet_baseline.py DATASET SPLITS --fold 0 --minutes 10 -o OUT
    segpipe evaluate -r DATASET/labelsTr -p OUT/validation -o OUT/scores.csv

For what it does and what its minutes include, see segpipe/bridge/nnunet_train.py. `segpipe study` runs the same for
an arm with `nnunetv2: true`.
"""

from __future__ import annotations

from segpipe.bridge.nnunet_train import main

if __name__ == "__main__":
    main()
