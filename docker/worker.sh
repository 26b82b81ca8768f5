#!/usr/bin/env bash
# Be a worker of a Ray cluster until SIGTERM. In an image, or anywhere with `ray` in PATH.
#
#   LAMINAR_HEAD                HOST:PORT of the head; must be set
#   LAMINAR_NODE_IP, LAMINAR_NUM_CPUS, LAMINAR_NUM_GPUS, LAMINAR_OBJECT_STORE_BYTES, RAY_AUTH_MODE,
#   RAY_AUTH_TOKEN_PATH         as in head.sh
# Options of `ray start` may follow and win.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"

options=(
  --block --disable-usage-stats --log-color false
  --address "${LAMINAR_HEAD:?must be HOST:PORT of the head, as head:6379}"
)
[[ -z ${LAMINAR_NODE_IP:-} ]] || options+=(--node-ip-address "$LAMINAR_NODE_IP")
[[ -z ${LAMINAR_NUM_CPUS:-} ]] || options+=(--num-cpus "$LAMINAR_NUM_CPUS")
[[ -z ${LAMINAR_NUM_GPUS:-} ]] || options+=(--num-gpus "$LAMINAR_NUM_GPUS")
[[ -z ${LAMINAR_OBJECT_STORE_BYTES:-} ]] ||
  options+=(--object-store-memory "$LAMINAR_OBJECT_STORE_BYTES")

exec ray start "${options[@]}" "$@"
