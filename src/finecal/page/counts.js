"use strict";
// What the page carries of each sample, and all that it counts from this at a gamma. The rule is finecal's: a sample is
// predicted absent if its margin is below gamma, and is right if it is a hit and predicted in its own group.

const data = JSON.parse(document.getElementById("data").textContent);

const samples = (() => {
  const types = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
  const unpacked = (packed) => {
    if (packed === null) return null;
    const text = atob(packed.base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new types[packed.type](bytes.buffer);
  };
  const flags = unpacked(data.flags);
  return {
    margin: unpacked(data.margin),
    isSeen: flags.map((flag) => flag & 1),
    isHit: flags.map((flag) => flag >> 1),
    label: unpacked(data.label),
    seenClass: unpacked(data.seen_class),
    absentClass: unpacked(data.absent_class),
    size: flags.length,
  };
})();

const maximum = (array) => array.reduce((most, value) => Math.max(most, value), 0);

// Samples of each class, and whether it is seen; empty without labels.
const classes = (() => {
  const size = samples.label === null ? 0 : maximum(samples.label) + 1;
  const count = new Int32Array(size);
  const isSeen = new Uint8Array(size);
  for (let i = 0; i < samples.size && size > 0; i++) {
    count[samples.label[i]]++;
    isSeen[samples.label[i]] = samples.isSeen[i];
  }
  return { size, count, isSeen };
})();

// Each sample can be taken for one class of the other group only: the best one there. So it belongs to one pair of its
// label and that class, or, without logits, to none.
const pairs = (() => {
  const label = [], predicted = [];
  const ofSample = new Int32Array(samples.size);
  if (samples.seenClass !== null) {
    const known = new Map();
    const width = 1 + Math.max(maximum(samples.seenClass), maximum(samples.absentClass));
    for (let i = 0; i < samples.size; i++) {
      const other = samples.isSeen[i] ? samples.absentClass[i] : samples.seenClass[i];
      const key = samples.label[i] * width + other;
      if (!known.has(key)) {
        known.set(key, label.length);
        label.push(samples.label[i]);
        predicted.push(other);
      }
      ofSample[i] = known.get(key);
    }
  }
  return { label, predicted, ofSample };
})();

// All that depends on gamma.
function countAt(gamma) {
  const counts = {
    rightSeen: 0,
    rightAbsent: 0,
    mended: 0,
    spoiled: 0,
    changed: 0,
    right: new Int32Array(classes.size),
    confused: new Int32Array(pairs.label.length),
  };
  const { margin, isSeen, isHit, label } = samples;
  for (let i = 0; i < samples.size; i++) {
    const inOwnGroup = margin[i] < gamma !== Boolean(isSeen[i]);
    const wasInOwnGroup = margin[i] < 0 !== Boolean(isSeen[i]);
    if (inOwnGroup && isHit[i]) {
      if (isSeen[i]) counts.rightSeen++;
      else counts.rightAbsent++;
      if (classes.size > 0) counts.right[label[i]]++;
    }
    if (!inOwnGroup && counts.confused.length > 0) counts.confused[pairs.ofSample[i]]++;
    if (inOwnGroup !== wasInOwnGroup) {
      counts.changed++;
      if (isHit[i] && inOwnGroup) counts.mended++;
      if (isHit[i] && wasInOwnGroup) counts.spoiled++;
    }
  }
  counts.neither = counts.changed - counts.mended - counts.spoiled;
  return counts;
}

const sizes = (() => {
  const seen = samples.isSeen.reduce((sum, flag) => sum + flag, 0);
  return { seen, absent: samples.size - seen };
})();

// As evaluate(...): NaN where there are no such samples.
function accuraciesOf(counts) {
  let seen, absent, all;
  if (data.average === "macro") {
    const sums = [0, 0], occurring = [0, 0];
    for (let c = 0; c < classes.size; c++) {
      if (classes.count[c] === 0) continue;
      sums[classes.isSeen[c]] += counts.right[c] / classes.count[c];
      occurring[classes.isSeen[c]]++;
    }
    [absent, seen] = [sums[0] / occurring[0], sums[1] / occurring[1]];
    all = (sums[0] + sums[1]) / (occurring[0] + occurring[1]);
  } else {
    seen = counts.rightSeen / sizes.seen;
    absent = counts.rightAbsent / sizes.absent;
    all = (counts.rightSeen + counts.rightAbsent) / samples.size;
  }
  return {
    acc_all: all,
    acc_seen: seen,
    acc_absent: absent,
    harmonic_mean: seen + absent === 0 ? 0 : (2 * seen * absent) / (seen + absent),
    balanced: (seen + absent) / 2,
  };
}
