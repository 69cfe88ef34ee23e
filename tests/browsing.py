"""What tests ask of a page in a browser."""

from __future__ import annotations

# Labels that the edge of their figure cuts off, of the figures that are drawn.
CUT_LABELS = """
() => [...document.querySelectorAll('[data-figure] svg.main-svg')].flatMap((svg) => {
  const edge = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1 || box.bottom > edge.bottom + 1);
  }).map((text) => text.textContent);
})
"""
