#!/usr/bin/env bash
# Any sound or film through `udse-fast stream`, decoded and encoded by ffmpeg or by GStreamer:
#
#     examples/pipe.sh ffmpeg IN OUT [options of udse-fast stream]
#     examples/pipe.sh gstreamer IN OUT.wav [options of udse-fast stream]
#
# `stream` reads and writes raw PCM, so that any program can stand before and after it: a microphone
# (ffmpeg -f pulse -i default), a network source, a player. FFMPEG names another ffmpeg.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 ffmpeg|gstreamer IN OUT [options of udse-fast stream]" >&2; exit 2; }
with=$1 in=$2 out=$3 rate=16000
shift 3
enhance() { udse-fast stream --format s16le --rate $rate --channels 1 "$@"; }

case $with in
ffmpeg)
  : "${FFMPEG:=ffmpeg}"
  "$FFMPEG" -nostdin -v error -i "$in" -f s16le -ar $rate -ac 1 - | enhance "$@" |
    "$FFMPEG" -nostdin -v error -y -f s16le -ar $rate -ac 1 -i - "$out"
  ;;
gstreamer)
  gst-launch-1.0 -q filesrc location="$in" ! decodebin ! audioconvert ! audioresample ! \
    audio/x-raw,format=S16LE,rate=$rate,channels=1 ! fdsink | enhance "$@" |
    gst-launch-1.0 -q fdsrc ! rawaudioparse pcm-format=s16le sample-rate=$rate num-channels=1 ! \
      wavenc ! filesink location="$out"
  ;;
*)
  echo "$0: expected ffmpeg or gstreamer, got $with" >&2
  exit 2
  ;;
esac
