"""Reads MPDs, a JSON array of texts on stdin, and prints for each the ids of its Periods with how many sets and Representations they have."""

import json
import sys

from mpegdash.parser import MPEGDASHParser


def period(element):
    sets = element.adaptation_sets or []
    return [element.id, len(sets), sum(len(adaptation.representations or []) for adaptation in sets)]


texts = json.load(sys.stdin)
json.dump([[period(element) for element in MPEGDASHParser.parse(text).periods] for text in texts], sys.stdout)
