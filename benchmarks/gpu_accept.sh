#!/usr/bin/env bash
# Acceptance on a machine with a GPU that has Python 3.12 and torch, but no network: what it lacks comes as wheels.
#
#   benchmarks/gpu_accept.sh collect WHEELS [DATA]      here: fetch the wheels and see whether all fits
#   benchmarks/gpu_accept.sh run CALL WHEELS OUT [DATA] there, in a copy of the tree: CALL is 1 (right) or 2 (fast)
#   benchmarks/gpu_accept.sh quick WHEELS OUT           anywhere: both calls on the CPU and on a stand-in for CUDA
#
# DATA is a dataset in nnU-Net's layout (hippocampus); without it only made-up volumes are trained on. PYTHON names the
# interpreter, ONLY some checks. Results are in OUT: one JSON file for each call, and gpu.md for benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
MOST_BYTES=$((64 << 20)) # of tree, wheels and data together
# Each call must end within ten minutes: installing takes about half of one, and the script divides the rest.
MINUTES=8.5
LIMIT_SECONDS=560
# Packages that segpipe and nnunetv2 import and the machine has not. Nothing follows dependencies: name them here.
OURS="pydantic pydantic-core annotated-types typing-inspection blosc2 ndindex numexpr nibabel"
THEIRS="nnunetv2 acvl-utils batchgenerators batchgeneratorsv2 dynamic-network-architectures connected-components-3d"
TARGET=(--only-binary=:all: --python-version 3.12 --implementation cp)
for n in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17; do TARGET+=(--platform "manylinux_${n}_x86_64"); done
TARGET+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

collect() { # the versions that this environment has: they passed the tests
  local wheels=$1 data=${2:-} name version pip="$PYTHON -m pip --disable-pip-version-check -q"
  mkdir -p "$wheels"
  rm -f "$wheels"/*.whl
  for name in $OURS $THEIRS; do
    version=$($PYTHON -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$name")
    $pip download --no-deps "${TARGET[@]}" -d "$wheels" "$name==$version" 2>/dev/null ||
      $pip wheel --no-deps -w "$wheels" "$name==$version" # there is its source only
  done
  if ls "$wheels" | grep -vE -- '-(cp312|cp3[0-9]*-abi3|py3|py2\.py3)-.*\.whl$|-py3-none-any\.whl$'; then
    echo "these wheels are not for Python 3.12 on Linux"
    exit 1
  fi
  fits "$wheels" "$data"
}

fits() {
  local wheels=$1 data=${2:-} tree=0 part total
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 stat -c %s 2>/dev/null | awk '{s += $1} END {print s + 0}')
  total=$tree
  echo "tree $((tree >> 10)) KiB"
  for part in "$wheels" $data; do
    part_bytes=$(du -sbL "$part" | cut -f1)
    echo "$part $((part_bytes >> 10)) KiB"
    total=$((total + part_bytes))
  done
  echo "together $((total >> 10)) of $((MOST_BYTES >> 10)) KiB"
  [ "$total" -le "$MOST_BYTES" ] || { echo "too much: carry less"; exit 1; }
}

install() { # nothing is looked for elsewhere
  local site=$1 wheels=$2
  $PYTHON -m pip install --disable-pip-version-check -q --no-index --no-deps --no-compile --upgrade --target "$site" \
    "$wheels"/*.whl
  export PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1
}

versions() {
  nvidia-smi || echo "no nvidia-smi"
  $PYTHON - <<'END'
import importlib.metadata as m, sys
print("Python", sys.version)
names = {d.metadata["Name"] for d in m.distributions()}
for name in sorted(names & {"torch", "triton", "numpy", "scipy", "numba", "llvmlite", "nvidia-cudnn-cu13", "nvidia-nccl-cu13",
                            "nnunetv2", "pydantic", "pydantic_core", "blosc2", "nibabel", "pytest", "hypothesis"}):
    print(name, m.version(name))
END
}

[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
what=$1
shift
case $what in
  collect) collect "$@" ;;
  run)
    call=$1 wheels=$2 out=$3
    install "$(mktemp -d)" "$wheels"
    mkdir -p "$out"
    versions | tee "$out/versions_$call.txt"
    timeout "$LIMIT_SECONDS" "$PYTHON" benchmarks/gpu_accept.py "$call" -o "$out" --minutes "$MINUTES" \
      ${4:+--data "$4"} ${ONLY:+--only $ONLY}
    ;;
  quick)
    wheels=$1 out=$2
    install "$(mktemp -d)" "$wheels"
    failed=0
    for call in 1 2; do "$PYTHON" benchmarks/gpu_accept.py "$call" -o "$out" --quick || failed=1; done
    exit "$failed"
    ;;
  *) echo "$what: expected collect, run or quick"; exit 2 ;;
esac
