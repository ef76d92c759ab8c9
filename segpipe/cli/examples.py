"""Examples of every command, printed below its `-h`; a test parses each with the command's own options."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("segpipe demo", "segpipe demo -o my-demo --device cpu -j 2"),
    "run": (
        "segpipe run DATA -o WORK",
        "segpipe run DATA -o WORK --time-budget 8h",
        "segpipe run DATA -o WORK --preset resenc_m -f 0 --epochs 100",
    ),
    "check": ("segpipe check DATA", "segpipe check DATA --json > faults.json", "segpipe check DATA --fix REPAIRED"),
    "plan": (
        "segpipe plan DATA -o WORK",
        "segpipe plan DATA -o WORK --preset resenc_m --gpu-memory 12",
        "segpipe plan DATA -o WORK --set configurations.3d_fullres.batch_size=4",
        "segpipe plan --nnunet-fingerprint F.json --nnunet-dataset D.json -o WORK",
    ),
    "prepare": ("segpipe prepare WORK --dry-run", "segpipe prepare WORK -c 3d_fullres -j 4"),
    "train": (
        "segpipe train WORK",
        "segpipe train WORK -f 0 --time-budget 2h",
        "segpipe train WORK -c 2d --epochs 200 --set training.learning_rate=0.003",
        "segpipe train WORK --profile",
    ),
    "select": ("segpipe select WORK", "segpipe select WORK --metric hd95 --ensembles"),
    "predict": (
        "segpipe predict -m WORK -i scan.nii.gz -o MASKS",
        "segpipe predict -m WORK -i IMAGES -o MASKS --device cpu --max-memory 8",
        "segpipe predict -m WORK -i IMAGES -o MASKS -f 0 --no-tta",
        "segpipe predict -m WORK -c 2d,3d_fullres -i IMAGES -o OUT --save-uncertainty",
    ),
    "ensemble": ("segpipe ensemble MASKS_A MASKS_B -o MASKS",),
    "pack": ("segpipe pack WORK -o liver.segpipe.zip",),
    "import": ("segpipe import nnUNetTrainer__nnUNetPlans__3d_fullres -o WORK",),
    "export": (
        "segpipe export WORK --to nnunet-plans plans.json",
        "segpipe export WORK --to nnunet-model MODEL -c 3d_fullres -f 0",
    ),
    "evaluate": (
        "segpipe evaluate -r LABELS -p MASKS -o scores.csv",
        "segpipe evaluate -r LABELS -p MASKS -l liver=1,tumour=2 --nsd-tolerance 1.5",
        "segpipe evaluate -r LABELS -p MASKS --metric-preset lesions",
    ),
    "compare": (
        "segpipe compare A/scores.csv B/scores.csv",
        "segpipe compare base=A ours=B --margin dice=0.01 -o COMPARISON",
        "segpipe compare A B --cases cases.csv --by site",
    ),
    "study": ("segpipe study STUDY.yaml -o OUT --dry-run", "segpipe study STUDY.yaml -o OUT"),
    "report": ("segpipe report WORK",),
    "view": (
        "segpipe view WORK",
        "segpipe view MASKS -i IMAGES -r LABELS",
        "segpipe view DATA --no-browser --port 8000",
    ),
    "info": ("segpipe info WORK", "segpipe info liver.segpipe.zip --json"),
    "doctor": ("segpipe doctor", "segpipe doctor /data/results --json"),
    "completion": (
        'eval "$(segpipe completion bash)"',
        'eval "$(segpipe completion zsh)"',
        "segpipe completion fish | source",
    ),
}
