"use strict";
// What the page carries of the samples, and all that it counts from this at a gamma. The rule is finecal's: a sample is
// predicted absent if its margin is below gamma, and is right if it is a hit and predicted in its own group.

const data = JSON.parse(document.getElementById("data").textContent);

function unpacked(packed) {
  const types = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
  const text = atob(packed.base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new types[packed.type](bytes.buffer);
}

const unpackedAll = (arrays) => Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, unpacked(array)]));

const levels = unpacked(data.levels);

// How many levels are below gamma.
function levelsBelow(gamma) {
  let low = 0, high = levels.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (levels[middle] < gamma) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The gamma nearest to this one at which the counts are exact: the nearest level if margins are rounded to these.
function countable(gamma) {
  if (data.are_exact) return gamma;
  const above = levelsBelow(gamma);
  const near = [levels[above - 1], levels[above]].filter(Number.isFinite);
  return near.reduce((best, level) => (Math.abs(level - gamma) < Math.abs(best - gamma) ? level : best));
}

// Samples of each group, and at a gamma those of them that are predicted absent.
function tallyOf(packed) {
  const { cells, level, samples } = unpackedAll(packed);
  const samplesBelow = (below) => {
    const sums = new Float64Array(cells.length);
    for (let group = 0, cell = 0; group < cells.length; group++) {
      for (const end = cell + cells[group]; cell < end; cell++) if (level[cell] < below) sums[group] += samples[cell];
    }
    return sums;
  };
  return { sizes: samplesBelow(levels.length), predictedAbsent: (gamma) => samplesBelow(levelsBelow(gamma)) };
}

const [ABSENT_MISS, SEEN_MISS, ABSENT_HIT, SEEN_HIT] = [0, 1, 2, 3];
const samples = tallyOf(data.samples);
const sizes = {
  seen: samples.sizes[SEEN_MISS] + samples.sizes[SEEN_HIT],
  absent: samples.sizes[ABSENT_MISS] + samples.sizes[ABSENT_HIT],
};

// Samples of each class, whether it is seen, and its hits.
const classes = data.classes === null
  ? null
  : { size: unpacked(data.classes.size), isSeen: unpacked(data.classes.is_seen), hits: tallyOf(data.classes.hits) };

// Each sample can be taken for one class of the other group only: the best one there. So it belongs to one pair of its
// label and that class.
const pairs = data.pairs === null
  ? null
  : { label: unpacked(data.pairs.label), predicted: unpacked(data.pairs.predicted), samples: tallyOf(data.pairs.samples) };

const changed = data.changes === null ? null : unpackedAll(data.changes);

// Of each group, the samples that are predicted seen where `areSeen` says so, elsewhere those predicted absent.
function predictedAs({ sizes, predictedAbsent }, gamma, areSeen) {
  return predictedAbsent(gamma).map((absent, group) => (areSeen(group) ? sizes[group] - absent : absent));
}

// All that depends on gamma.
function countAt(gamma) {
  const before = samples.predictedAbsent(0), now = samples.predictedAbsent(gamma);
  const moved = now.map((count, group) => count - before[group]); // All of one sign.
  const gains = [moved[ABSENT_HIT], -moved[SEEN_HIT]];
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const counts = {
    rightSeen: samples.sizes[SEEN_HIT] - now[SEEN_HIT],
    rightAbsent: now[ABSENT_HIT],
    mended: sum(gains.filter((gain) => gain > 0)),
    spoiled: -sum(gains.filter((gain) => gain < 0)),
    changed: Math.abs(sum(moved)),
    right: classes === null ? [] : predictedAs(classes.hits, gamma, (label) => classes.isSeen[label]),
    confused: pairs === null ? [] : predictedAs(pairs.samples, gamma, (pair) => !classes.isSeen[pairs.label[pair]]),
  };
  counts.neither = counts.changed - counts.mended - counts.spoiled;
  return counts;
}

const countsAtZero = countAt(0);

// As evaluate(...): NaN where there are no such samples.
function accuraciesOf(counts) {
  let seen, absent, all;
  if (data.average === "macro") {
    const sums = [0, 0], occurring = [0, 0];
    for (let c = 0; c < classes.size.length; c++) {
      if (classes.size[c] === 0) continue;
      sums[classes.isSeen[c]] += counts.right[c] / classes.size[c];
      occurring[classes.isSeen[c]]++;
    }
    [absent, seen] = [sums[0] / occurring[0], sums[1] / occurring[1]];
    all = (sums[0] + sums[1]) / (occurring[0] + occurring[1]);
  } else {
    seen = counts.rightSeen / sizes.seen;
    absent = counts.rightAbsent / sizes.absent;
    all = (counts.rightSeen + counts.rightAbsent) / (sizes.seen + sizes.absent);
  }
  return {
    acc_all: all,
    acc_seen: seen,
    acc_absent: absent,
    harmonic_mean: seen + absent === 0 ? 0 : (2 * seen * absent) / (seen + absent),
    balanced: (seen + absent) / 2,
  };
}
