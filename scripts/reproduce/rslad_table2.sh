#!/usr/bin/env bash
# RSLAD's table 2: its two teachers. Nothing is trained at full scale.
#   bash scripts/reproduce/rslad_table2.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR10
published_teacher Zhang2019Theoretically models/model_cifar_wrn.pt \
  "TRADES's published WideResNet-34-10, also RobustBench's Zhang2019Theoretically, or: python main.py --dataset CIFAR10 --method TRADES --model wideresnet34_10 --recipe paper"
[ "$scale" != full ] || chain "$(figures teacher_CIFAR10 "${teacher[3]}" --model wideresnet34_10)"
on CIFAR100
published_teacher Gowal2020Uncovering models/cifar100_linf_wrn70-16_without.pt \
  "DeepMind's published WideResNet-70-16, also RobustBench's Gowal2020Uncovering, or: python main.py --dataset CIFAR100 --method TRADES --model wideresnet70_16_deepmind"
[ "$scale" != full ] || chain "$(figures teacher_CIFAR100 "${teacher[3]}" --model wideresnet70_16_deepmind)"
beside
