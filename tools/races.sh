#!/bin/bash
# Runs races on sealed volumes, several tasks at once whose turns follow from a seed, on all cores, and stops
# at the first that breaks a rule, which it prints with its seed.
#
# Usage: tools/races.sh [--races N] [--from SEED]
#
# The same seed is the same race, as long as neither the tests nor the engine change. Without arguments,
# 100,000 races from seed 0 on; the tests run the first 5,000 of them.
set -euo pipefail
cd "$(dirname "$0")/.."

races=100000
from=0
while (($#)); do
    case $1 in
        --races) races=${2:?--races needs a number}; shift ;;
        --from) from=${2:?--from needs a seed}; shift ;;
        *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2 ;;
    esac
    shift
done
RACES=$races RACES_FROM=$from \
    cargo test --release --features schedules --test sealed no_race_breaks_a_volume -- --nocapture
