#!/usr/bin/env bash
# Does bf16 train as well as fp32? Three seeds of each: DGAD of a small network from one AT teacher, then one table.
#   bash scripts/reproduce/precision.sh OUT [--dataset Folder --data_root DIR ...]    (data flags; CIFAR-10 when not given)
# Finished runs are skipped, an interrupted one continues.
set -euo pipefail
out=$(realpath -m "${1:?name a folder for the runs}")
shift
cd "$(dirname "$0")/../.."
python=$(bash scripts/setup.sh)
data=("$@")
[ $# -gt 0 ] || data=(--dataset CIFAR10)
setting=(--model small_resnet --lr_schedule cosine --lr_max 0.1 --bs 64 --limit_train 5000 --limit_test 500 --root_path "$out" --resume)

"$python" main.py "${data[@]}" "${setting[@]}" --method AT --precision fp32 --epochs 10
teacher=$(find "$out" -path '*/AT/*' -name best_PGD10_acc_model.pth)
for seed in 1 2 3; do
  for precision in fp32 bf16; do
    "$python" main.py "${data[@]}" "${setting[@]}" --method DGAD --ALP_beta 5.0 --epochs 6 --seed "$seed" --no_teacher_check \
      --precision "$precision" --desc_str "$precision" --teacher_model small_resnet --teacher_path "$teacher"
  done
done
for checkpoint in $(find "$out" -path '*/DGAD/*' -name last_epoch_model.pth | sort); do
  "$python" main_eval.py "${data[@]}" --model_path "$checkpoint" --limit_test 2000 --attacks clean,pgd,cw --no-pictures
done
"$python" scripts/compare.py "$out" --out "$out/comparison"
