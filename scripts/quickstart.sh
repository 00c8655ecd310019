#!/usr/bin/env bash
# From nothing to a distilled, evaluated student in a few minutes on a CPU: scikit-learn's handwritten digits, no download.
#   bash scripts/quickstart.sh [FOLDER]     results go to FOLDER (quickstart/ when not given); again: continues there
set -euo pipefail
out=$(realpath -m "${1:-quickstart}")
cd "$(dirname "$0")/.."
python=$(bash scripts/setup.sh)
export MPLCONFIGDIR=${MPLCONFIGDIR:-${TMPDIR:-/tmp}/matplotlib-$(id -u)}

# Strokes are far brighter than noise, so digits need a larger ball than photographs: 16/255.
setting=(--dataset Digits --image_size 16 --model small_resnet --epsilon 16 --lr_schedule cosine --lr_max 0.05 --bs 64
  --root_path "$out" --resume)
natural=$out/Digits/Natural/small_resnet_seed42/best_clean_acc_model.pth
teacher=$out/Digits/AT/small_resnet_eps16_seed42/best_PGD10_acc_model.pth
student=$out/Digits/DGAD/small_resnet_from_small_resnet_eps16_seed42/best_PGD10_acc_model.pth

"$python" main.py --method Natural "${setting[@]}" --epochs 8
"$python" main.py --method AT "${setting[@]}" --step_size 4 --epochs 16
"$python" main.py --method DGAD "${setting[@]}" --step_size 4 --epochs 13 --ALP_beta 5.0 \
  --teacher_model small_resnet --teacher_path "$teacher"

for checkpoint in "$natural" "$teacher" "$student"; do
  "$python" main_eval.py --dataset Digits --image_size 16 --model small_resnet --model_path "$checkpoint" \
    --eps 0.0627451 --attacks clean,fgsm,pgd,aa --limit_aa 32
done
"$python" scripts/summarize.py "$out/quickstart.png" "natural=$natural" "AT teacher=$teacher" "DGAD student=$student"
activate=${python%python}activate
[ -n "${VIRTUAL_ENV:-}" ] || [ ! -e "$activate" ] || echo "next: source $activate, then the README's commands"
