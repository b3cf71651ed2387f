// Whose viewers a count is of. Pure: no page.

/** In a sentence, of an answer with `viewers_at` and `viewers_not_at`: names of nodes. */
export function whose({ viewers_at: here, viewers_not_at: elsewhere }) {
  if (here.length === 0) {
    return elsewhere.length === 0 ? 'Viewers are counted at edges; this node is none.' : `Viewers are counted at edges: ask ${elsewhere.join(', ')}.`;
  }
  const counted = `Viewers are those who asked ${here.join(', ')} for something in the last half minute`;
  return elsewhere.length === 0 ? `${counted}.` : `${counted}, without those of ${elsewhere.join(', ')}.`;
}
