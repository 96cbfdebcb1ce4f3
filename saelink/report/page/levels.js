// Numbers as the page stores them, see levels.py.

const LOWEST = -50;
const ONE = 1 - LOWEST * 900;
const TENS = 1 + (-3 - LOWEST) * 90; // the level of .001 in two digits

function sizeAt(level, figures) {
  if (!level) return 0;
  const steps = 9 * 10 ** (figures - 1);
  const power = Math.floor((level - 1) / steps);
  return Number(`${level - 1 - power * steps + 10 ** (figures - 1)}e${power + LOWEST - figures + 1}`);
}

// The weights of codes, each told by how much smaller it is than the one before.
export function weightsAt(codes) {
  let level = ONE;
  return codes.map((code) => {
    level -= code >> 1;
    return code & 1 ? -sizeAt(level, 3) : sizeAt(level, 3);
  });
}

const withSign = (code, size) => (code < 0 ? -size : size);

export function riseAt(code) {
  if (code === null) return null;
  const steps = Math.abs(code);
  return withSign(code, steps <= 10 ? steps / 1e4 : sizeAt(steps - 10 + TENS, 2));
}

export function shareAt(code) {
  if (code === null) return null;
  const steps = Math.abs(code);
  return withSign(code, steps <= 100 ? steps / 1000 : (steps - 90) / 100);
}

// Values that are mostly 0, from pairs of a step and hundredths.
export function spread(stored, length) {
  const values = new Array(length).fill(0);
  let place = -1;
  for (let i = 0; i < stored.length; i += 2) {
    place += stored[i];
    values[place] = stored[i + 1] / 100;
  }
  return values;
}
