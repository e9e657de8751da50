#!/bin/sh
# An agent in shell: claims the roles that ask for SKILL, runs COMMAND once the council is active, reports how it went.
#
#   P2PNODE_API=unix:/run/p2pnode/api.sock council-agent.sh SKILL COMMAND [ARGUMENT…]
#
# COMMAND finds the council in COUNCIL_ID and its role in ROLE (a JSON string). Needs curl and jq.
set -eu
skill=${1:?usage: council-agent.sh SKILL COMMAND [ARGUMENT...]}
shift
case ${P2PNODE_API:?name the sidecar: unix:PATH or tcp:HOST:PORT} in
    unix:*) base=http://localhost/api/v1/councils ;;
    *) base=http://${P2PNODE_API#tcp:}/api/v1/councils ;;
esac

ask() {
    case $P2PNODE_API in
        unix:*) curl --silent --show-error --unix-socket "${P2PNODE_API#unix:}" "$@" ;;
        *) curl --silent --show-error "$@" ;;
    esac
}

say() { # say ID/claims '{…}': prints the message id, or why not
    ask --header 'Content-Type: application/json' --data "$2" "$base/$1" | jq --raw-output '.detail // .id' || true
}

# One line for each role that is open and fits, and for each that is ours: what, council, fencing number, role as JSON.
todo='
    select(startswith("data: ")) | .[6:] | fromjson | . as $council | .roles[] | . as $role |
    if (.state == "open" and ($council.status | IN("forming", "active")) and (.required_skills | index([$skill])))
    then "claim \($council.council_id) 0 0 \(.role_name | tojson)"
    elif ($council.status == "active" and ($council.mine | index([$role.role_name])))
    then "work \($council.council_id) \(.term) \(.n) \(.role_name | tojson)"
    else empty end'

while :; do
    done_already=
    ask --no-buffer "$base/events" | jq --unbuffered --raw-input --raw-output --arg skill "$skill" "$todo" |
        while read -r what id term n role; do
            case $done_already in *"<$what $id $term $n $role>"*) continue ;; esac
            done_already="$done_already<$what $id $term $n $role>"
            if [ "$what" = claim ]; then
                say "$id/claims" "{\"role_name\": $role, \"capabilities\": [$(jq --null-input --arg skill "$skill" '$skill')]}"
            else
                status=completed
                COUNCIL_ID=$id ROLE=$role "$@" </dev/null || status=failed
                say "$id/status" "{\"status\": \"$status\", \"role_name\": $role, \"term\": $term, \"n\": $n}"
            fi
        done || true
    sleep 1 # the sidecar was restarted: what is comes again
done
