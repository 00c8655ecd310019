#!/usr/bin/env bash
# DGAD on CIFAR-10: ResNet-18 and MobileNetV2 from a WideResNet-34-10.
#   bash scripts/reproduce/dgad_cifar10.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR10
published_teacher wideresnet34_10 teacher_models/CIFAR10/wideresnet34_10/robust_teacher.pth \
  "Any robust WideResNet-34-10, such as TRADES's (model_cifar_wrn.pt), or: python main.py --dataset CIFAR10 --method TRADES --model wideresnet34_10 --recipe paper"
for model in resnet18 mobilenetV2; do
  as "$model"
  for method in AT TRADES ARD IAD-I RSLAD AdaAD DGAD; do row "${method}_$model" "$method"; done
done
beside
