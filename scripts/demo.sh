#!/usr/bin/env bash
# Broadcasts a clock until it is stopped: `demo.sh URL [CA-FILE]`.
#
# The time of day with milliseconds on a moving picture, and a beep at each full second, so that anyone can see how late
# and hear how well in time a player is. 1280x720 at 30 frames a second, H.264 with a keyframe every 2 s; AAC, 48 kHz.
set -euo pipefail

url=$1
ca=${2:-}
font=/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf
[[ -f $font ]] || { echo "$font is missing: run scripts/deps.sh" >&2; exit 1; }

# time(0) is read as a frame is drawn; drawn behind -re, because the inputs themselves are read some frames ahead of it.
# Colons and commas are escaped once for the text, once for the filter.
clock='%{localtime\:%H\\\:%M\\\:%S}.%{eif\:mod(floor(time(0)*1000)\,1000)\:d\:3}'
text="fontfile=$font:fontcolor=white:box=1:boxcolor=black@0.75"
draw="drawtext=$text:boxborderw=26:fontsize=128:x=(w-tw)/2:y=(h-th)/2:text='$clock',\
drawtext=$text:boxborderw=14:fontsize=34:x=(w-tw)/2:y=h-110:text='Rooftop demo  %{localtime\:%Y-%m-%d %Z}',\
format=yuv420p"
# The first sample notes the time of day; from there on samples are counted.
beep="aevalsrc='st(0,if(eq(n,0),time(0),ld(0)));0.4*sin(2*PI*880*t)*lt(mod(t+ld(0),1),0.1)':sample_rate=48000:nb_samples=480"

tls=()
if [[ $url == rtmps:* && -f $ca ]]; then
  tls=(-tls_verify 1 -ca_file "$ca")
fi
exec ffmpeg -nostdin -hide_banner -loglevel warning \
  -re -f lavfi -i testsrc2=size=1280x720:rate=30 -re -f lavfi -i "$beep" \
  -vf "$draw" -c:v libx264 -preset superfast -tune zerolatency -profile:v high -g 60 -keyint_min 60 -sc_threshold 0 \
  -b:v 2500k -maxrate 2500k -bufsize 2500k \
  -c:a aac -b:a 128k -ar 48000 -ac 2 \
  -flvflags no_duration_filesize "${tls[@]}" -f flv "$url"
