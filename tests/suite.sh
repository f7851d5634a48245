#!/usr/bin/env bash
# What scripts/test-kafka and scripts/test-faults share: tests on clusters, and a table of their results.
# Sourced; everything is stopped and deleted when the script ends. After a failure the brokers' logs stay.

failed=0
table=()
child=
work=$(mktemp -d)
# Other accounts, which some tests use, must get to their folders in it.
chmod 711 "$work"
# Clusters that the tests start are in here, too, and are stopped at the end.
export TMPDIR=$work

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

# run COMMAND...: a signal to this script ends the command, too, and all that it started.
run() {
    set -m
    ("$@") &
    child=$!
    set +m
    local status=0
    wait "$child" || status=$?
    child=
    return "$status"
}

# shellcheck disable=SC2317  # called by the trap
clean_up() {
    local status=$?
    trap '' INT TERM HUP
    if [[ $child ]]; then
        kill -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    tests/cluster stop --dir "$work" || true
    if ((status)) && compgen -G "$work/kafka-*" >/dev/null; then
        echo "${0##*/}: the brokers' logs are in $work" >&2
    else
        rm -rf "$work"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

add_line() { table+=("$(printf '%-20s %7s %7s %8s  %s' "$@")"); }

# finish: prints the table, and exits with 1 if anything failed.
finish() {
    printf '\n%-20s %7s %7s %8s\n' "" passed failed seconds
    printf '%s\n' "${table[@]}"
    exit "$failed"
}

# shellcheck disable=SC2317  # called by `run`
cargo_test() { cargo test --locked --test integration "$@" 2>&1 | tee "$work/output"; }
count() { sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$work/output" | tail -n 1; }

# test_with NAME [ARGUMENT OF CARGO TEST...]: adds a line to the table. No test at all is a failure, too.
test_with() {
    local name=$1 start=$SECONDS status=0 passed not_passed note=
    shift
    : >"$work/output"
    run cargo_test "$@" || status=$?
    passed=$(count passed)
    not_passed=$(count failed)
    if [[ -z $passed ]]; then
        note="did not run to its end"
    elif ((passed + not_passed == 0)); then
        note="ran no test"
    fi
    if ((status)) || [[ $note ]]; then failed=1; fi
    add_line "$name" "${passed:-0}" "${not_passed:-0}" "$((SECONDS - start))" "$note"
}

# parse_cluster CLUSTER: sets `version`, `brokers` and `secure`.
parse_cluster() {
    [[ $1 =~ ^([0-9.]+)(x([0-9]))?([+]secure)?$ ]] ||
        fail "a cluster looks like 4.3.1, 4.3.1x3 or 4.3.1+secure, not like $1"
    version=${BASH_REMATCH[1]}
    brokers=${BASH_REMATCH[3]:-1}
    secure=${BASH_REMATCH[4]}
}

# test_on CLUSTER [ARGUMENT OF CARGO TEST...]: the same on a new cluster, which the tests get to know by
#
#   KAFKA_CHAT_TEST_VERSION   its version
#   KAFKA_CHAT_TEST_SERVERS   its bootstrap servers
#   KAFKA_CHAT_TEST_DIR       its folder, for tests/cluster
test_on() {
    local cluster=$1 version brokers secure start=$SECONDS
    shift
    parse_cluster "$cluster"
    local options=("$version" "$brokers")
    if [[ $secure ]]; then options+=(--secure); fi
    export KAFKA_CHAT_TEST_VERSION=$version KAFKA_CHAT_TEST_DIR=$work/kafka-$cluster
    if ! run tests/cluster start "${options[@]}" --dir "$KAFKA_CHAT_TEST_DIR" >"$work/servers"; then
        failed=1
        add_line "$cluster" 0 0 "$((SECONDS - start))" "Kafka did not start"
        return
    fi
    KAFKA_CHAT_TEST_SERVERS=$(<"$work/servers")
    export KAFKA_CHAT_TEST_SERVERS
    test_with "$cluster" "$@"
    tests/cluster stop --dir "$KAFKA_CHAT_TEST_DIR" || failed=1
    unset KAFKA_CHAT_TEST_VERSION KAFKA_CHAT_TEST_DIR KAFKA_CHAT_TEST_SERVERS
}
