#!/usr/bin/env bash
# DGAD on CIFAR-100: ResNet-18 and MobileNetV2 from a WideResNet-34-10.
#   bash scripts/reproduce/dgad_cifar100.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR100
published_teacher Chen2021LTD_WRN34_10 teacher_models/CIFAR100/wideresnet34_10/Chen2021LTD.pt \
  "RobustBench's Chen2021LTD_WRN34_10, or: python main.py --dataset CIFAR100 --method TRADES --model wideresnet34_10"
for model in resnet18 mobilenetV2; do
  as "$model"
  for method in AT TRADES ARD IAD-I RSLAD AdaAD DGAD; do row "${method}_$model" "$method"; done
done
beside
