#!/usr/bin/env bash
# RSLAD's table 4: MobileNetV2 students on CIFAR-10 and CIFAR-100.
#   bash scripts/reproduce/rslad_table4.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR10
as mobilenetV2
published_teacher Zhang2019Theoretically models/model_cifar_wrn.pt \
  "TRADES's published WideResNet-34-10, also RobustBench's Zhang2019Theoretically, or: python main.py --dataset CIFAR10 --method TRADES --model wideresnet34_10 --recipe paper"
for method in AT TRADES ARD IAD-I RSLAD; do row "${method}_CIFAR10" "$method"; done
on CIFAR100
published_teacher Gowal2020Uncovering models/cifar100_linf_wrn70-16_without.pt \
  "DeepMind's published WideResNet-70-16, also RobustBench's Gowal2020Uncovering, or: python main.py --dataset CIFAR100 --method TRADES --model wideresnet70_16_deepmind"
for method in AT TRADES ARD IAD-I RSLAD; do row "${method}_CIFAR100" "$method"; done
beside
