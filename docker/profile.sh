# shellcheck shell=sh
# For login shells, whose PATH Debian's /etc/profile sets anew; KubeRay before 1.4 starts Ray in one.
# In the image it is /etc/profile.d/laminar.sh.
export PATH="/opt/laminar/bin:/opt/laminar/docker:$PATH"
