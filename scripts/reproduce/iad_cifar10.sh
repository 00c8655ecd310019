#!/usr/bin/env bash
# IAD on CIFAR-10 (the paper's table 2, and the same from a teacher of TRADES): ResNet-18 from a ResNet-18.
#   bash scripts/reproduce/iad_cifar10.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR10
as resnet18
train_second resnet18
for of in AT TRADES; do
  train_teacher "teacher_$of" "$of" resnet18
  row "ARD_$of" ARD --temp 1 --kl_weight 1 # ARD as IAD's code has it
  for method in AKD2 IAD-I IAD-II; do row "${method}_$of" "$method"; done
done
beside
