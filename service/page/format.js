// Numbers and times as people read them.

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.round(minutes / 60 / 24)} days`;
}

/** A number with as many digits as say something. */
export function figure(value, digits = 3) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1);
  return size >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

export function percent(share, digits = 1) {
  return share == null ? "–" : `${(100 * share).toFixed(digits)}\u00a0%`;
}

/** A metric of a search, by its name. */
export function shown(name, value) {
  if (name.endsWith("accuracy")) return percent(value, 2);
  return name.endsWith("bytes") && value != null ? bytes(value) : figure(value, 4);
}

export function plural(count, noun) {
  return `${figure(count)} ${noun}${count === 1 ? "" : "s"}`;
}

export function ago(time, now = Date.now()) {
  const seconds = (now - Date.parse(time)) / 1000;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  const days = Math.floor(seconds / 86400);
  return `${days} day${days === 1 ? "" : "s"} ago`;
}

export function clock(time) {
  return new Date(time).toLocaleTimeString("en-GB");
}

export function dateTime(time) {
  return new Date(time).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

/** A key of the configuration in words: `batch_size` is `Batch size`. */
export function words(key) {
  const text = key.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
