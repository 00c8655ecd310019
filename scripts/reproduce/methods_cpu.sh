#!/usr/bin/env bash
# Every method under one setting on a CPU: three seeds of a small network each, distilled from one AT teacher and, where a
# method wants a second one, from a naturally trained network too; best and last checkpoints in one table.
#   bash scripts/reproduce/methods_cpu.sh [--list] [OUT] [--dataset Folder --data_root DIR ...]    (CIFAR-10 when not given)
# METHODS and the sizes of small_setting.sh can be set in the environment.
source "$(dirname "$0")/small_setting.sh"

METHODS=${METHODS:-Natural AT TRADES MART ARD AKD2 IAD-I IAD-II RSLAD AdaAD AdaIAD DGAD DGAD-IAD}

teachers
for seed in $SEEDS; do
  for method in $METHODS; do
    scale=()
    [ "$method" != AdaAD ] || scale=(--kl_weight 0.1) # CIFAR-10's, also for a copy of it in a folder
    student "$method" "$seed" "" --ALP_beta 5.0 "${scale[@]}"
  done
done
compare
