"""Reads playlists with m3u8 and tells what it understood, as parse.mjs does: hls.py FOLDER"""

import json
import pathlib
import sys

import m3u8


def understood(text):
    playlist = m3u8.loads(text)
    if playlist.is_variant:
        return {"variants": len(playlist.playlists), "iframes": len(playlist.iframe_playlists)}
    # The segment that still grows is its last one, without a URI.
    segments = [segment for segment in playlist.segments if segment.uri]
    return {
        "segments": len(segments),
        "media_sequence": playlist.media_sequence,
        "discontinuity_sequence": playlist.discontinuity_sequence,
        "seconds": sum(segment.duration for segment in segments),
        "parts": sum(len(segment.parts) for segment in playlist.segments),
        "gaps": sum(1 for segment in segments if segment.gap_tag),
        "ended": playlist.is_endlist,
    }


def told(path):
    try:
        return {"m3u8": understood(path.read_text())}
    except Exception as error:
        return {"m3u8": {"problem": repr(error)}}


files = sorted(pathlib.Path(sys.argv[1]).glob("*.m3u8"))
json.dump({path.name: told(path) for path in files}, sys.stdout)
