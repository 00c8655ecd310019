#!/usr/bin/env bash
# DGAD on Tiny-ImageNet: ResNet-18 and MobileNetV2 from a PreActResNet-18 that TRADES trains here.
#   bash scripts/reproduce/dgad_tiny.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on Tiny_Image
train_teacher teacher TRADES presnet18
for model in resnet18 mobilenetV2; do
  as "$model"
  for method in AT TRADES ARD IAD-I RSLAD AdaAD DGAD; do row "${method}_$model" "$method"; done
done
beside
