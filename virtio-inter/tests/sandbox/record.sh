#!/usr/bin/env bash
# Records the system calls that ports make in the tests of the program, by the role of the thread:
# writes calls.txt beside this script, with which the test `calls_that_are_allowed_are_made` compares
# the lists of the sandbox, and the same for the exporter in virtio-inter-host. Leaves out tests of
# many ports, for which strace is too slow. Needs strace, cargo-nextest, which runs each test in a
# process of its own, and root for the tests with tap devices.
set -euo pipefail
cd "$(dirname "$0")"
record=$(mktemp -d)
trap 'rm -rf "$record"' EXIT
chmod 1777 "$record"
VIRTIO_INTER_CALLS=$record cargo nextest run -p virtio-inter -E 'binary(port) & not test(many::)' \
  --no-fail-fast || {
  # Tests that failed, as strace is slow, are in the record; without a build there is none.
  [ $? -eq 100 ]
  echo "Some tests failed: what they did is in the record" >&2
}
for file in "$record"/[0-9]*; do
  awk -F'[<>( ]+' '
    $3 == "landlock_restrict_self" { inside = 1; next }
    !inside || $3 !~ /^[a-z_0-9]+$/ { next }
    $2 ~ /^queue-/ { print "worker", $3; next }
    $2 ~ /^(log|signals|notify|segment-closer)$/ { print "helper", $3; next }
    $2 ~ /^virtio-inter/ { print "control", $3 }
  ' "$file"
done | LC_ALL=C sort -u > calls.txt
awk -F'[<>( ]+' '
  $3 == "landlock_restrict_self" { inside[FILENAME] = 1; next }
  inside[FILENAME] && $3 ~ /^[a-z_0-9]+$/ && $2 != "log" { print $3 }
' "$record"/exporter-* | LC_ALL=C sort -u > ../../../virtio-inter-host/tests/sandbox/calls.txt
