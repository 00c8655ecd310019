#!/usr/bin/env bash
# The parts of DGAD on a CPU, three seeds each: its partition (MAP), exchange (ELS) and consistency term (PCR) on and off,
# and the weight beta of the consistency term. All three with beta 5 is one of each; the setting is methods_cpu.sh's.
#   bash scripts/reproduce/ablation_cpu.sh [--list] [OUT] [--dataset Folder --data_root DIR ...]   (CIFAR-10 when not given)
# The same OUT as methods_cpu.sh's shares its teachers. BETAS and the sizes of small_setting.sh can be set in the
# environment.
source "$(dirname "$0")/small_setting.sh"

teachers
for seed in $SEEDS; do
  for map in "MAP --map" "noMAP --no-map"; do
    for els in "ELS --els" "noELS --no-els"; do
      for pcr in "PCR --alp on" "noPCR --alp off"; do
        word=${map%% *}_${els%% *}_${pcr%% *}
        student DGAD "$seed" "$word" --ALP_beta 5.0 ${map#* } ${els#* } ${pcr#* }
      done
    done
  done
  for beta in ${BETAS:-0 1 15}; do
    student DGAD "$seed" "beta$beta" --ALP_beta "$beta"
  done
done
compare
