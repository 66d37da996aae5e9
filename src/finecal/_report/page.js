"use strict";
// The controls, and all that moves with them.

const slider = document.getElementById("slider");
const number = document.getElementById("number");
const buttons = document.querySelectorAll("button[data-gamma]");
const live = document.querySelectorAll("[data-now]");
const changes = document.querySelectorAll("[data-change]");
const tallies = document.querySelectorAll("[data-count]");
const accuraciesAtZero = accuraciesOf(countsAtZero);

// Gamma as a short text: as "%.4g" in Python, for numbers of the usual size.
const short = (gamma) => String(Number(gamma.toPrecision(4)));

function moveMarkers(gamma, accuracies) {
  for (const marker of document.querySelectorAll(".now[data-figure]")) {
    const { left, top, width, height, x, y } = data.axes[marker.dataset.figure];
    const across = (value) => left + (width * (value - x[0])) / (x[1] - x[0]);
    const down = (value) => top + height - (height * (value - y[0])) / (y[1] - y[0]);
    let place;
    if (marker.tagName === "circle") {
      place = { cx: across(accuracies.acc_seen), cy: down(accuracies.acc_absent), r: 8 };
    } else {
      place = { x1: across(gamma), x2: across(gamma), y1: down(y[0]), y2: down(y[1]) };
      marker.style.display = gamma < x[0] || gamma > x[1] ? "none" : "";
    }
    for (const [name, value] of Object.entries(place)) marker.setAttribute(name, value);
  }
}

function show(gamma) {
  const counts = countAt(gamma);
  const accuracies = accuraciesOf(counts);
  for (const element of live) {
    const key = element.dataset.now;
    if (!(key in accuracies)) continue; // Gamma does not change it.
    element.value = accuracies[key];
    write(element, percent(accuracies[key]));
  }
  for (const element of changes) {
    const key = element.dataset.change;
    if (key in accuracies) write(element, change(accuracies[key] - accuraciesAtZero[key]));
  }
  for (const element of tallies) write(element, whole(counts[element.dataset.count]));
  for (const button of buttons) button.setAttribute("aria-pressed", Number(button.dataset.gamma) === gamma);
  for (const element of document.querySelectorAll("[data-gamma-now]")) write(element, short(gamma));
  slider.setAttribute("aria-valuetext", short(gamma));
  moveMarkers(gamma, accuracies);
  classTable.show(counts);
  if (pairs !== null) {
    showPairs(counts);
    showChanges(gamma);
  }
  return accuracies;
}

// --- one frame at a time ---

let gamma = data.gamma;
let frame = 0;
let pause = 0;

function settle(accuracies) {
  classTable.settle();
  const parts = [["all", "acc_all"], ["seen", "acc_seen"], ["absent", "acc_absent"]];
  const text = parts.map(([name, key]) => `${name} ${percent(accuracies[key])} %`).join(", ");
  document.getElementById("announcement").textContent = `gamma ${short(gamma)}: accuracy ${text}`;
}

// `source` is the control that moves: while the reader types, the text stays as it is.
function moveControls(source) {
  if (source !== slider) slider.value = gamma;
  if (source !== number) number.value = short(gamma);
}

function set(value, source) {
  if (!Number.isFinite(value)) return;
  gamma = countable(value);
  moveControls(source);
  cancelAnimationFrame(frame);
  clearTimeout(pause);
  frame = requestAnimationFrame(() => {
    const accuracies = show(gamma);
    pause = setTimeout(() => settle(accuracies), 300);
  });
}

// NaN without one. A plus is a sign here, no space.
function fromAddress() {
  const text = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("gamma");
  return text === null || text.trim() === "" ? NaN : Number(text);
}

slider.addEventListener("input", () => set(slider.valueAsNumber, slider));
number.addEventListener("input", () => set(number.valueAsNumber, number));
number.addEventListener("change", () => moveControls(null));
for (const button of buttons) button.addEventListener("click", () => set(Number(button.dataset.gamma), button));
addEventListener("hashchange", () => set(fromAddress(), null));

if (Number.isFinite(fromAddress())) gamma = countable(fromAddress());
moveControls(null);
show(gamma);
classTable.settle();
addEventListener("beforeprint", () => {
  classTable.settle();
  classTable.sort();
});
