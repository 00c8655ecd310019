#!/usr/bin/env bash
# The parts of DGAD on a CPU, three seeds each: its partition (MAP), exchange (ELS) and consistency term (PCR) on and off,
# and the weight beta of the consistency term (0 is PCR off). The setting is methods_cpu.sh's.
#   bash scripts/reproduce/ablation_cpu.sh [--list] [OUT] [--dataset Folder --data_root DIR ...]   (CIFAR-10 when not given)
# The same OUT as methods_cpu.sh's shares its teachers and its DGAD. BETAS and the sizes of small_setting.sh can be set in
# the environment.
source "$(dirname "$0")/small_setting.sh"

# parts MAP|noMAP ELS|noELS PCR|noPCR: DGAD with and without its parts, under each seed.
parts() {
  local flags=(--map --els --alp on) seed
  [ "$1" = MAP ] || flags[0]=--no-map
  [ "$2" = ELS ] || flags[1]=--no-els
  [ "$3" = PCR ] || flags[3]=off
  for seed in $SEEDS; do student DGAD "$seed" "$1_$2_$3" --ALP_beta 5.0 "${flags[@]}"; done
}

teachers
for seed in $SEEDS; do student DGAD "$seed" "" --ALP_beta 5.0; done # all three parts
parts noMAP noELS noPCR
parts noMAP ELS PCR
parts MAP noELS PCR
parts MAP ELS noPCR
for beta in ${BETAS:-1 15}; do
  for seed in $SEEDS; do student DGAD "$seed" "beta$beta" --ALP_beta "$beta"; done
done
parts MAP noELS noPCR
parts noMAP ELS noPCR
parts noMAP noELS PCR
compare
