#!/usr/bin/env bash
# `enter.sh COMMAND...` on a node, inside the container if there is one: enters the environment of settings.sh.
set -euo pipefail
if [[ ${JOB_ENVIRONMENT:-} && ! ${JOB_CONTAINER:-} ]]; then
    # shellcheck disable=SC1090
    source "$JOB_ENVIRONMENT"
fi
exec "$@"
