#!/usr/bin/env bash
# IAD's ablation on CIFAR-10: the exponent beta of the teacher's reliability, and the epoch from which the student trusts
# itself too (the warm-up), for both of its forms, ResNet-18 from one that AT trained.
#   bash scripts/reproduce/iad_ablation.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
# BETAS and BEGINS set the values tried; the official ones (0.1; 60, IAD-II: 40) are the rows without a suffix.
source "$(dirname "$0")/table_setting.sh"

case $scale in
  full) begins="20 80" ;;
  short) begins="1 5" ;; # of 10 epochs
  smoke) begins=0 ;;
esac

on CIFAR10
as resnet18
train_second resnet18
train_teacher teacher_AT AT resnet18
for method in IAD-I IAD-II; do
  row "$method" "$method"
  for beta in ${BETAS:-0.01 0.5 1}; do row "${method}_beta$beta" "$method" --IAD_beta "$beta"; done
  for begin in ${BEGINS:-$begins}; do row "${method}_begin$begin" "$method" --IAD_begin "$begin"; done
done
beside
