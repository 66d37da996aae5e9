// A block that is wider than its place scrolls. Such a block, and no other, is a stop for the keyboard.
"use strict";

const LABELS = { PRE: "Code", "table-wrapper": "Table", "math-wrapper": "Formula" };

function mark(block) {
  const scrolls = block.scrollWidth > block.clientWidth + 1;
  if (scrolls === block.hasAttribute("tabindex")) return;
  if (scrolls) {
    block.setAttribute("tabindex", "0");
    block.setAttribute("role", "region");
    block.setAttribute("aria-label", LABELS[block.tagName] ?? LABELS[block.classList[0]]);
  } else {
    for (const name of ["tabindex", "role", "aria-label"]) block.removeAttribute(name);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const widths = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
  for (const block of document.querySelectorAll("pre, .table-wrapper, .math-wrapper")) widths.observe(block);
});
