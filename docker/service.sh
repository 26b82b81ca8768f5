#!/usr/bin/env bash
# Serve jobs until SIGTERM. In an image, or anywhere with `laminar` in PATH.
#
#   LAMINAR_STORAGE       folder of the jobs, shared with all nodes, or a URI (jobs)
#   LAMINAR_RAY_ADDRESS   the cluster's dashboard (http://127.0.0.1:8265)
#   LAMINAR_HOST          address to listen on (127.0.0.1); any other one needs LAMINAR_TOKENS
#   LAMINAR_PORT          port to listen on (8484)
#   LAMINAR_TOKENS        file of tokens
#   LAMINAR_FIRST_TOKEN   where there is no file of tokens: make one, with a token of role admin, and
#                         write the token itself to this file, for its owner alone
#   LAMINAR_HOST_NAMES    names by which browsers may call it, with commas between
#   LAMINAR_DATA_ROOTS    folders that jobs may read from, with colons between
#   RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH    as in head.sh
# Options of `laminar serve` may follow and win.
set -euo pipefail

options=(
  --storage "${LAMINAR_STORAGE:-jobs}"
  --ray-address "${LAMINAR_RAY_ADDRESS:-http://127.0.0.1:8265}"
  --host "${LAMINAR_HOST:-127.0.0.1}"
  --port "${LAMINAR_PORT:-8484}"
)
IFS=, read -ra names <<<"${LAMINAR_HOST_NAMES:-}"
for name in "${names[@]}"; do
  options+=(--host-name "$name")
done
IFS=: read -ra roots <<<"${LAMINAR_DATA_ROOTS:-}"
for root in "${roots[@]}"; do
  options+=(--data-root "$root")
done

if [[ -n ${LAMINAR_TOKENS:-} ]]; then
  if [[ -n ${LAMINAR_FIRST_TOKEN:-} && ! -e $LAMINAR_TOKENS ]]; then
    (
      umask 077
      laminar token create --file "$LAMINAR_TOKENS" --user admin --role admin \
        >"$LAMINAR_FIRST_TOKEN"
    )
  fi
  options+=(--tokens "$LAMINAR_TOKENS")
fi

exec laminar serve "${options[@]}" "$@"
