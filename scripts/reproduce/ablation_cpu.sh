#!/usr/bin/env bash
# The parts of DGAD on a CPU, three seeds each: its partition (MAP), exchange (ELS) and consistency term (PCR) on and off,
# and the weight beta of the consistency term (0 is PCR off). The setting is methods_cpu.sh's.
#   bash scripts/reproduce/ablation_cpu.sh [--list] [OUT] [--dataset Folder --data_root DIR ...]   (CIFAR-10 when not given)
# The same OUT as methods_cpu.sh's shares its teachers and its DGAD. BETAS and the sizes of small_setting.sh can be set in
# the environment.
source "$(dirname "$0")/small_setting.sh"

teachers
for seed in $SEEDS; do
  student DGAD "$seed" "" --ALP_beta 5.0 # all three parts
  for parts in "MAP ELS noPCR" "MAP noELS PCR" "noMAP ELS PCR" "MAP noELS noPCR" "noMAP ELS noPCR" "noMAP noELS PCR" \
    "noMAP noELS noPCR"; do
    read -r map els pcr <<<"$parts"
    [ "$map" = MAP ] && map=--map || map=--no-map
    [ "$els" = ELS ] && els=--els || els=--no-els
    [ "$pcr" = PCR ] && pcr=on || pcr=off
    student DGAD "$seed" "${parts// /_}" --ALP_beta 5.0 "$map" "$els" --alp "$pcr"
  done
  for beta in ${BETAS:-1 15}; do
    student DGAD "$seed" "beta$beta" --ALP_beta "$beta"
  done
done
compare
