#!/bin/sh
# A run from its submission to its end with a lost connection in between, another one that is stopped, and a response.
set -eu

api=${LONGHAUL_URL:-http://127.0.0.1:4680}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/events"

ask() {
  curl -fsS ${LONGHAUL_API_KEY:+-H "authorization: Bearer $LONGHAUL_API_KEY"} "$@"
}

post() {
  ask "$api$1" -H 'content-type: application/json' -d "$2"
}

# The text of a field, the last one of that name.
field() {
  printf '%s\n' "$2" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

note() {
  printf '\n· %s\n' "$1"
}

show() {
  case $event in
    text.delta | reasoning.delta)
      text=${data#*'"text":"'}
      printf '%b' "${text%'"}}'}"
      ;;
    step.restarted) note 'the step broke off and is done over' ;;
    end)
      ended=1
      note "run $run: $(field status "$data")"
      ;;
  esac
}

# Shows every event behind $last, as long as the connection holds.
follow() {
  ask -N "$api/v1/runs/$run/events" -H 'accept: text/event-stream' -H "last-event-id: $last" "$@" \
    >"$folder/events" 2>/dev/null &
  while IFS= read -r line; do
    case $line in
      'id: '*) id=${line#id: } ;;
      'event: '*) event=${line#event: } ;;
      'data: '*) data=${line#data: } ;;
      # Only now is the event whole. One that was cut before this line comes again.
      '') last=$id && show ;;
    esac
  done <"$folder/events"
  wait $! || true
}

# Goes on in the background, whatever this script does.
answer=$(post /v1/responses '{"model": "demo", "input": "the same as a response", "background": true}')
response=$(field id "$answer")

answer=$(post /v1/runs '{"agent": "demo", "input": "compare three queues"}')
run=$(field runId "$answer")
note "run $run"
last=0 ended=
follow --max-time 4
note "cut on purpose behind event $last"
until [ "$ended" ]; do
  follow
  [ "$ended" ] || { note "lost behind event $last" && sleep 1; }
done

answer=$(post /v1/runs '{"agent": "demo", "input": "never mind"}')
other=$(field runId "$answer")
answer=$(ask -X POST "$api/v1/runs/$other/stop?wait=10")
note "run $other: $(field status "$answer"), $(field reason "$answer")"

while :; do
  answer=$(ask "$api/v1/responses/$response")
  status=$(field status "$answer")
  case $status in
    queued | in_progress) sleep 1 ;;
    *) break ;;
  esac
done
note "response $response: $status"
printf '%b\n' "$(field text "$answer")"
