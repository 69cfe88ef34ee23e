// Numbers as text, as qlora_ray/formats.py writes them.

export const MISSING = "-";
const GIB = 1024 ** 3;

export function formatNumber(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 10 ** digits) return String(Math.round(value));
  return String(Number(value.toPrecision(digits)));
}

// Four decimals; a small loss by its digits, so that it never reads as 0.
export function formatLoss(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return MISSING;
  const size = Math.abs(value);
  if (value === 0 || (size >= 0.01 && size < 1000)) return value.toFixed(4);
  return size >= 1000 && size < 1e7 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

export function formatCount(value) {
  return value === null || value === undefined ? MISSING : Math.round(value).toLocaleString("en-US");
}

export function formatGib(bytes) {
  return bytes === null || bytes === undefined ? MISSING : `${(bytes / GIB).toFixed(2)} GiB`;
}

export function formatShare(share) {
  return share === null || share === undefined ? MISSING : `${Math.round(100 * share)} %`;
}

export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

export function formatTime(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  return new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ") + " UTC";
}

export function formatValue(value) {
  if (value === true) return "yes";
  if (value === false) return "no";
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : formatNumber(value);
  if (Array.isArray(value)) return value.map(formatValue).join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function plural(number, noun) {
  return `${formatCount(number)} ${noun}${number === 1 ? "" : "s"}`;
}
