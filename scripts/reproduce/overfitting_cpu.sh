#!/usr/bin/env bash
# Robust overfitting on a CPU: many epochs on few images with the papers' piecewise schedule, with and without a teacher,
# and how far the teacher can be trusted along the way.
#   bash scripts/reproduce/overfitting_cpu.sh [--list] [OUT] [--dataset Folder --data_root DIR ...]    (CIFAR-10 when not given)
# The same OUT as methods_cpu.sh's shares its teachers. METHODS and the sizes of small_setting.sh can be set in the
# environment.
SCHEDULE=${SCHEDULE:-piecewise} EPOCHS=${EPOCHS:-60} LIMIT_TRAIN=${LIMIT_TRAIN:-1000}
source "$(dirname "$0")/small_setting.sh"

teachers
for seed in $SEEDS; do
  for method in ${METHODS:-AT IAD-I}; do
    student "$method" "$seed" long --ALP_beta 5.0
  done
done
compare
