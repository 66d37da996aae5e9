"use strict";
// Numbers as text, and the tables of classes, pairs and changed predictions.

// One decimal. A tie goes to the even digit, as in the numbers that finecal prints.
function fixed(value) {
  const tenths = value * 10;
  const low = Math.floor(tenths);
  const tied = tenths - low === 0.5 && (value * 4) % 1 === 0;
  return (tied ? (low + Math.abs(low % 2)) / 10 : value).toFixed(1);
}

const percent = (fraction) => (Number.isNaN(fraction) ? "-" : fixed(100 * fraction));

function change(fraction) {
  if (Number.isNaN(fraction)) return "-";
  const text = fixed(100 * fraction);
  return text.startsWith("-") ? text.replace("-", "−") : `+${text}`;
}

const whole = (count) => count.toLocaleString("en-US");

// Setting a text lays it out anew, even if it is the same.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const nameOf = (index) => (data.class_names === null ? String(index) : data.class_names[index]);

// --- classes ---

const classTable = (() => {
  const table = document.getElementById("classes");
  if (table === null) return { show() {}, settle() {}, sort() {} };
  const body = table.tBodies[0];
  const collator = new Intl.Collator("en", { numeric: true });
  const rows = Array.from(body.rows, (row) => {
    const index = Number(row.dataset.class);
    const before = countsAtZero.right[index] / classes.size[index];
    const [name, group, count, , now, change] = Array.from(row.cells);
    return {
      row, index, now: now.firstChild, change: change.firstChild,
      value: { name: name.textContent, group: group.textContent, count: classes.size[index], before, now: before, change: 0, index },
    };
  });
  let sorted = { key: "change", type: "number", direction: 1 }; // The largest loss first.
  let isStale = false;

  function sort() {
    isStale = false;
    const { key, type, direction } = sorted;
    const compare = type === "text" ? collator.compare : (a, b) => a - b;
    rows.sort((a, b) => direction * compare(a.value[key], b.value[key]) || a.index - b.index);
    const ordered = rows.map(({ row }) => row);
    if (ordered.some((row, i) => row !== body.rows[i])) body.replaceChildren(...ordered);
  }

  table.tHead.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button === null) return;
    const { key, type } = button.dataset;
    const direction = sorted.key === key ? -sorted.direction : 1;
    sorted = { key, type, direction };
    for (const header of table.tHead.rows[0].cells) header.setAttribute("aria-sort", "none");
    button.parentElement.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    sort();
  });

  document.getElementById("filter").addEventListener("input", ({ target }) => {
    const wanted = target.value.trim().toLowerCase();
    let shown = 0;
    for (const { row, value } of rows) {
      row.hidden = !value.name.toLowerCase().includes(wanted);
      if (!row.hidden) shown++;
    }
    const all = whole(rows.length);
    document.getElementById("shown").textContent = wanted === "" ? `${all} classes occur` : `${whole(shown)} of ${all} classes`;
  });

  // While gamma moves, only rows in sight follow: to lay out a thousand takes longer than a frame.
  const inSight = new Set();
  const byRow = new Map(rows.map((entry) => [entry.row, entry]));
  const observer = new IntersectionObserver((changed) => {
    for (const { target, isIntersecting } of changed) {
      const entry = byRow.get(target);
      if (isIntersecting) {
        inSight.add(entry);
        writeRow(entry);
      } else {
        inSight.delete(entry);
      }
    }
    if (isStale && inSight.size > 0) sort();
  });
  for (const { row } of rows) observer.observe(row);

  function writeRow({ value, now, change: difference }) {
    write(now, percent(value.now));
    write(difference, change(value.change));
  }

  return {
    show(counts) {
      for (const { index, value } of rows) {
        value.now = counts.right[index] / classes.size[index];
        value.change = value.now - value.before;
      }
      inSight.forEach(writeRow);
    },
    // Rows that move about under a moving slider could not be read, and those out of sight can wait.
    settle() {
      rows.forEach(writeRow);
      isStale ||= sorted.key === "now" || sorted.key === "change";
      if (isStale && inSight.size > 0) sort();
    },
    sort,
  };
})();

// --- rows that come and go ---

function fill(id, lines) {
  const table = document.getElementById(id);
  const rows = lines.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, i) => {
      const element = row.appendChild(document.createElement(i === 0 ? "th" : "td"));
      if (i === 0) element.scope = "row";
      // A name may be written from right to left.
      if (cell.name === undefined) element.textContent = cell;
      else element.appendChild(document.createElement("bdi")).textContent = cell.name;
      if (cell.group !== undefined) element.className = cell.group;
    });
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
  table.parentElement.hidden = lines.length === 0;
  document.querySelector(`[data-empty="${id}"]`).hidden = lines.length > 0;
}

// Pairs with the most samples; of equal ones those that come first in the data.
function mostConfused(confused) {
  const most = [];
  for (let pair = 0; pair < confused.length; pair++) {
    if (confused[pair] === 0) continue;
    if (most.length === data.shown_pairs && confused[pair] <= confused[most[data.shown_pairs - 1]]) continue;
    let place = most.length;
    while (place > 0 && confused[most[place - 1]] < confused[pair]) place--;
    most.splice(place, 0, pair);
    most.length = Math.min(most.length, data.shown_pairs);
  }
  return most;
}

const named = (index) => ({ name: nameOf(index) });

function showPairs(counts) {
  fill("pairs", mostConfused(counts.confused).map((pair) => {
    const [group, other] = classes.isSeen[pairs.label[pair]] ? ["seen", "absent"] : ["absent", "seen"];
    return [
      { ...named(pairs.label[pair]), group },
      { ...named(pairs.predicted[pair]), group: other },
      whole(countsAtZero.confused[pair]),
      whole(counts.confused[pair]),
    ];
  }));
}

function showChanges(gamma) {
  const { sample, level, label, seen_class: seenClass, absent_class: absentClass } = changed;
  const [below, belowZero] = [levelsBelow(gamma), levelsBelow(0)];
  const lines = [];
  for (let i = 0; i < sample.length && lines.length < data.shown_changes; i++) {
    if (level[i] < below === level[i] < belowZero) continue;
    const [before, now] = level[i] < below ? [seenClass[i], absentClass[i]] : [absentClass[i], seenClass[i]];
    const result = now === label[i] ? "becomes right" : before === label[i] ? "becomes wrong" : "stays wrong";
    lines.push([String(sample[i]), named(label[i]), named(before), named(now), result]);
  }
  fill("changes", lines);
}
