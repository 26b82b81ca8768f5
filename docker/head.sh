#!/usr/bin/env bash
# Be the head of a Ray cluster until SIGTERM. In an image, or anywhere with `ray` in PATH.
#
#   LAMINAR_NODE_IP             this node's address, where Ray would choose another
#   LAMINAR_RAY_PORT            the port that nodes join at (6379)
#   LAMINAR_DASHBOARD_HOST      where the dashboard listens, which runs jobs for whoever reaches it:
#                               this machine alone (127.0.0.1), unless nobody else reaches the network
#   LAMINAR_DASHBOARD_PORT      its port (8265)
#   LAMINAR_NUM_CPUS            CPUs for stages on the head (all); 0 keeps it for drivers
#   LAMINAR_NUM_GPUS            GPUs (all)
#   LAMINAR_OBJECT_STORE_BYTES  of /dev/shm (Ray's default: 30% of memory)
#   LAMINAR_TEMP_DIR            of sockets and logs; must be short (/tmp/ray)
#   RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH    Ray's own token, the same on all nodes
# Options of `ray start` may follow and win.
set -euo pipefail
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"

options=(
  --head --block --disable-usage-stats --log-color false
  --port "${LAMINAR_RAY_PORT:-6379}"
  --dashboard-host "${LAMINAR_DASHBOARD_HOST:-127.0.0.1}"
  --dashboard-port "${LAMINAR_DASHBOARD_PORT:-8265}"
)
[[ -z ${LAMINAR_NODE_IP:-} ]] || options+=(--node-ip-address "$LAMINAR_NODE_IP")
[[ -z ${LAMINAR_NUM_CPUS:-} ]] || options+=(--num-cpus "$LAMINAR_NUM_CPUS")
[[ -z ${LAMINAR_NUM_GPUS:-} ]] || options+=(--num-gpus "$LAMINAR_NUM_GPUS")
[[ -z ${LAMINAR_OBJECT_STORE_BYTES:-} ]] ||
  options+=(--object-store-memory "$LAMINAR_OBJECT_STORE_BYTES")
[[ -z ${LAMINAR_TEMP_DIR:-} ]] || options+=(--temp-dir "$LAMINAR_TEMP_DIR")

exec ray start "${options[@]}" "$@"
