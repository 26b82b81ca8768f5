#!/usr/bin/env bash
# Succeed if a URL answers with a success: the images have no curl. For health checks:
#
#   head     http://127.0.0.1:8265/api/gcs_healthz
#   worker   http://127.0.0.1:52365/api/local_raylet_healthz
#   service  http://127.0.0.1:8484/healthz
set -euo pipefail

exec python -c '
import sys
import urllib.request

try:
    urllib.request.urlopen(sys.argv[1], timeout=3).read()
except OSError as error:
    sys.exit(str(error))
' "${1:?must be a URL}"
