// Pauses between attempts: they double from a quarter of a second to ten seconds. Half of each is random, because all
// browsers that a restart cut off would come back in the same instant otherwise.

const FIRST = 250; // ms
const LONGEST = 10_000; // ms

/** Return the milliseconds to wait before a further attempt; `attempt` counts from 0. */
export const pause = (attempt) => {
  const whole = Math.min(LONGEST, FIRST * 2 ** attempt);
  return whole / 2 + (Math.random() * whole) / 2;
};
