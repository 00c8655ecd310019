#!/usr/bin/env bash
# IAD on Tiny-ImageNet: PreActResNet-18 from one that AT trained. The paper has a larger temperature here, which its code
# does not name: 1 is CIFAR's.
#   bash scripts/reproduce/iad_tiny.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on Tiny_Image
as presnet18
train_second presnet18
train_teacher teacher_AT AT presnet18
row ARD_AT ARD --temp 1 --kl_weight 1 # ARD as IAD's code has it
for method in AKD2 IAD-I IAD-II; do row "${method}_AT" "$method"; done
beside
