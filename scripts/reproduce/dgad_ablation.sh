#!/usr/bin/env bash
# DGAD's parts on CIFAR-10: ResNet-18 with its partition (MAP), exchange (ELS) and consistency term (PCR) on and off.
#   bash scripts/reproduce/dgad_ablation.sh [--list] [--scale full|short|smoke] [OUT] [data flags]    (common.sh, table_setting.sh)
source "$(dirname "$0")/table_setting.sh"

on CIFAR10
as resnet18
published_teacher wideresnet34_10 teacher_models/CIFAR10/wideresnet34_10/robust_teacher.pth \
  "Any robust WideResNet-34-10, such as TRADES's (model_cifar_wrn.pt), or: python main.py --dataset CIFAR10 --method TRADES --model wideresnet34_10 --recipe paper"
for map in "MAP --map" "noMAP --no-map"; do
  for els in "ELS --els" "noELS --no-els"; do
    for pcr in "PCR --alp on" "noPCR --alp off"; do
      row "${map%% *}_${els%% *}_${pcr%% *}" DGAD ${map#* } ${els#* } ${pcr#* }
    done
  done
done
beside
