#!/usr/bin/env bash
# Train, distill and evaluate on scikit-learn's handwritten digits: takes a few minutes on a CPU, downloads only packages.
#   bash scripts/quickstart.sh [FOLDER]     results go to FOLDER (default: quickstart/); the same command continues
set -euo pipefail
case ${1:-} in -*) echo "usage: bash scripts/quickstart.sh [FOLDER]" >&2 && exit 2 ;; esac
unset CDPATH # with it cd prints
mkdir -p "${1:-quickstart}"
out=$(cd "${1:-quickstart}" && pwd)
python=$(bash "$(dirname "$0")/setup.sh")
cd "$(dirname "$0")/.."
free=$("$python" -m utils.load) # empty if no other process uses a core
[ -z "$free" ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$free}"
export MPLCONFIGDIR=${MPLCONFIGDIR:-${TMPDIR:-/tmp}/matplotlib-$(id -u)}

# Digits have a higher contrast than photographs, so epsilon is 16/255.
common=(--dataset Digits --image_size 16 --model small_resnet --epsilon 16 --lr_schedule cosine --lr_max 0.05 --bs 64
  --root_path "$out" --resume)
natural=$out/Digits/Natural/small_resnet_seed42/best_clean_acc_model.pth
teacher=$out/Digits/AT/small_resnet_eps16_seed42/best_PGD10_acc_model.pth
student=$out/Digits/DGAD/small_resnet_from_small_resnet_eps16_seed42/best_PGD10_acc_model.pth

"$python" main.py --method Natural "${common[@]}" --epochs 8
"$python" main.py --method AT "${common[@]}" --step_size 4 --epochs 16
"$python" main.py --method DGAD "${common[@]}" --step_size 4 --epochs 13 --ALP_beta 5.0 \
  --teacher_model small_resnet --teacher_path "$teacher"
for checkpoint in "$natural" "$teacher" "$student"; do
  "$python" main_eval.py --dataset Digits --image_size 16 --model small_resnet --model_path "$checkpoint" \
    --eps 16/255 --attacks clean,fgsm,pgd,aa --limit_aa 32
done
"$python" scripts/compare.py "$out/Digits" --out "$out/comparison"
"$python" -m engine.reporting "$out"
activate=${python%python}activate
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -e "$activate" ] || echo "next: source '$activate', then run the commands of README.md"
