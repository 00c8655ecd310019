#!/usr/bin/env bash
# IAD on CIFAR-100: ResNet-18 from a ResNet-18 that AT trained.
#   bash scripts/reproduce/iad_cifar100.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR100
as resnet18
train_second resnet18
train_teacher teacher_AT AT resnet18
row ARD_AT ARD --temp 1 --kl_weight 1 # ARD as IAD's code has it
for method in AKD2 IAD-I IAD-II; do row "${method}_AT" "$method"; done
beside
