// A label's colour, as vision/core/draw.py gives it.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#f0e442"];

export function colour(label) {
  let total = 0;
  for (const byte of new TextEncoder().encode(label)) total = (Math.imul(total, 501) + byte) >>> 0;
  return PALETTE[total % PALETTE.length];
}
